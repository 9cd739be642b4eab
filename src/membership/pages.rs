//! What people see of the rings, and may do about them.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Form, State};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use http::{HeaderMap, Uri};
use serde_json::{Value, json};
use skald_ring::{
    GroupId, GroupView, InstanceId, Member, ReplicaGroups, RingState, ScaleIn, ScaleInError, prepare_scale_in,
    remove_group, scale_in_progress,
};

use super::keeper::now;
use super::{RingRole, Rings};
use crate::error::{ErrorKind, ServiceError};
use crate::http::{Action, TablePage, prometheus_error};

/// The routes: `/ring` (the replica groups), `/<role>/ring` and `/memberlist`.
pub fn routes(rings: Arc<Rings>) -> Router {
    let mut router = Router::new()
        .route("/ring", get(groups).post(change_group))
        .route("/ring/scale_in", get(scale_in))
        .route("/memberlist", get(memberlist))
        .route("/ingester/ring", get(ingesters).post(|rings, form| forget(RingRole::Ingester, rings, form)));
    for role in RingRole::OF_INSTANCES {
        router = router.route(
            &format!("/{role}/ring"),
            get(move |rings, headers| instances(role, rings, headers))
                .post(move |rings, form| forget(role, rings, form)),
        );
    }
    router.with_state(rings)
}

const MEMBER_COLUMNS: &[&str] = &[
    "id",
    "state",
    "healthy",
    "zone",
    "replica_group",
    "repaired",
    "heartbeat_age_seconds",
    "grpc_address",
    "http_address",
    "registered_at_ms",
    "incarnation",
    "build",
];
const FORGET: Action = Action { field: "forget", label: "Forget" };

fn member_row(member: &Member) -> Vec<Value> {
    let instance = &member.instance;
    vec![
        json!(instance.id.as_str()),
        json!(instance.state.to_string()),
        json!(member.healthy),
        json!(instance.zone),
        json!(instance.membership.map(|place| place.group.0)),
        json!(instance.repaired),
        json!(member.heartbeat_age.as_secs()),
        json!(instance.grpc_address),
        json!(instance.http_address),
        json!(instance.registered_at_ms),
        json!(member.version.incarnation),
        json!(instance.build.name),
    ]
}

/// One row for each instance of a ring.
fn member_page(title: String, members: &[Arc<Member>], notes: Vec<String>) -> TablePage {
    let rows = members.iter().map(|member| member_row(member)).collect();
    TablePage { title, notes, columns: MEMBER_COLUMNS, rows, action: Some(FORGET) }
}

fn faults(groups: &ReplicaGroups) -> Vec<String> {
    let homeless = groups.homeless().iter().map(|id| format!("{id} says nothing about its replica group"));
    groups.conflicts().iter().map(ToString::to_string).chain(homeless).collect()
}

async fn ingesters(State(rings): State<Arc<Rings>>, headers: HeaderMap) -> Response {
    let view = rings.ingesters.view();
    let members = super::View::members(&*view);
    let mut notes = vec![
        "An ingester that is forgotten and still lives registers again. Forget one only when it will not come back: its \
         replica group then has a place for another."
            .to_owned(),
    ];
    notes.extend(faults(&view));
    member_page("Ingesters".to_owned(), &members, notes).answer(&headers)
}

async fn instances(role: RingRole, State(rings): State<Arc<Rings>>, headers: HeaderMap) -> Response {
    let view = rings.instances(role).view();
    member_page(format!("Ring of the {role}s"), view.members(), Vec::new()).answer(&headers)
}

#[derive(serde::Deserialize)]
struct Forget {
    forget: String,
}

async fn forget(role: RingRole, State(rings): State<Arc<Rings>>, Form(form): Form<Forget>) -> Response {
    let store = match role {
        RingRole::Ingester => rings.ingesters.store(),
        role => rings.instances(role).store(),
    };
    let forgotten = InstanceId::new(&form.forget).ok().and_then(|id| store.get().forget(&id, rings.clock.now_ms()));
    let Some(change) = forgotten else {
        let message = format!("there is no {role} {:?}", form.forget);
        return prometheus_error(&ServiceError::new(ErrorKind::NotFound, "no-such-instance", message));
    };
    store.update(&change);
    rings.refresh();
    tracing::info!(ring = %role, instance = form.forget, "forgotten on request");
    Redirect::to(&format!("/{role}/ring")).into_response()
}

const GROUP_COLUMNS: &[&str] = &[
    "replica_group",
    "state",
    "members",
    "missing",
    "write_quorum",
    "read_quorum",
    "owned_share",
    "writable_for_seconds",
    "read_only_for_seconds",
];

fn group_row(groups: &ReplicaGroups, group: &GroupView) -> Vec<Value> {
    let members: Vec<String> = group.members.iter().map(|member| member.id().to_string()).collect();
    let away = group.members.iter().filter(|member| !member.takes_writes()).map(|member| member.id().to_string());
    vec![
        json!(group.id.0),
        json!(group.state.to_string()),
        json!(members.join(", ")),
        json!(away.collect::<Vec<_>>().join(", ")),
        json!(group.has_write_quorum()),
        json!(group.has_read_quorum()),
        json!((groups.owned_share(group.id) * 1e4).round() / 1e4),
        json!(group.writable_for.as_secs()),
        json!(group.read_only_for.map(|since| since.as_secs())),
    ]
}

async fn groups(State(rings): State<Arc<Rings>>, headers: HeaderMap) -> Response {
    let view = rings.ingesters.view();
    let rows = view.groups().iter().map(|group| group_row(&view, group)).collect();
    let mut notes = vec![
        "Replica groups of ingesters. A group that is made read-only takes no new series; /ring/scale_in tells when no reader \
         needs it any more. Then it can be removed (POST remove=N), and its ingesters may go. A group stays until it is removed, \
         whoever of it is there."
            .to_owned(),
    ];
    notes.extend(faults(&view));
    let action = Some(Action { field: "read_only", label: "Make read-only" });
    TablePage { title: "Replica groups".to_owned(), notes, columns: GROUP_COLUMNS, rows, action }.answer(&headers)
}

const SCALE_IN_COLUMNS: &[&str] = &[
    "replica_group",
    "state",
    "read_only_for_seconds",
    "read_for_another_seconds",
    "in_object_storage",
    "not_in_object_storage",
    "may_be_removed",
    "why",
];

/// How far each group is on its way out.
async fn scale_in(State(rings): State<Arc<Rings>>, headers: HeaderMap) -> Response {
    let view = rings.ingesters.view();
    let row = |group: &GroupView| {
        let progress = scale_in_progress(group, rings.lookback);
        let left = match progress {
            ScaleIn::Draining(left) => Some(left.as_secs()),
            ScaleIn::NotPrepared => None,
            _ => Some(0),
        };
        let is_shipped = |member: &&Arc<Member>| member.instance.shipped && member.instance.repaired;
        let names = |shipped: bool| {
            let members = group.members.iter().filter(|member| is_shipped(member) == shipped);
            members.map(|member| member.id().as_str()).collect::<Vec<_>>().join(", ")
        };
        vec![
            json!(group.id.0),
            json!(group.state.to_string()),
            json!(group.read_only_for.map(|since| since.as_secs())),
            json!(left),
            json!(names(true)),
            json!(names(false)),
            json!(matches!(progress, ScaleIn::Removable | ScaleIn::Done)),
            json!(progress.to_string()),
        ]
    };
    let notes = vec![
        "Scaling in: POST read_only=N to /ring makes group N read-only (read_write=N takes it back). It may be removed once \
         reads look back no further than that, and a majority of its members has everything in object storage. Members say \
         so while their group is read-only; POST /ingester/flush hurries them."
            .to_owned(),
        "Then POST remove=N to /ring. Or POST /ingester/prepare-shutdown on its ingesters and stop them: they ship what they \
         hold, give up their places, and remove the group when it may be."
            .to_owned(),
    ];
    let rows = view.groups().iter().map(row).collect();
    TablePage { title: "Scale-in of replica groups".to_owned(), notes, columns: SCALE_IN_COLUMNS, rows, action: None }
        .answer(&headers)
}

#[derive(serde::Deserialize)]
struct ChangeGroup {
    read_only: Option<u32>,
    read_write: Option<u32>,
    remove: Option<u32>,
}

/// `read_only=N` prepares a scale-in, `read_write=N` calls it off, `remove=N` ends it.
async fn change_group(State(rings): State<Arc<Rings>>, uri: Uri, Form(form): Form<ChangeGroup>) -> Response {
    let store = rings.ingesters.store();
    let refused =
        |kind, reason: &'static str, message: String| prometheus_error(&ServiceError::new(kind, reason, message));
    let (state, view, now) = (store.get(), rings.ingesters.view(), now(rings.clock.as_ref()));
    let change: Result<Option<RingState>, ScaleInError> = match (form.read_only, form.read_write, form.remove) {
        (Some(group), None, None) => prepare_scale_in(&state, &view, GroupId(group), now),
        (None, Some(group), None) => {
            Ok(state.set_group_mode(GroupId(group), skald_ring::GroupMode::ReadWrite, now.wall_ms))
        }
        (None, None, Some(group)) => remove_group(&state, &view, GroupId(group), rings.lookback, now),
        _ => {
            let message = "expected read_only=<group>, read_write=<group> or remove=<group>".to_owned();
            return refused(ErrorKind::BadData, "bad-parameter", message);
        }
    };
    let change = match change {
        Ok(change) => change,
        Err(error) => return refused(ErrorKind::BadData, "scale-in-refused", error.to_string()),
    };
    if let Some(change) = change {
        store.update(&change);
        rings.refresh();
    }
    Redirect::to(uri.path()).into_response()
}

async fn memberlist(State(rings): State<Arc<Rings>>, headers: HeaderMap) -> Response {
    let (rows, note) = match &rings.gossip {
        None => (Vec::new(), "This process is alone: memberlist.bind_address is none.".to_owned()),
        Some(gossip) => {
            let members = gossip.members().await;
            let rows = members.iter().map(|member| vec![json!(member.node), json!(member.address)]).collect();
            let counts = rings.replica.counts();
            let note = format!(
                "Cluster {}; this process is {}. Messages: {} taken in, {} of other clusters, {} badly signed, {} newer \
                 than this build, {} malformed, {} of values this build does not have; {} changes wait to be sent.",
                rings.replica.cluster().name(),
                rings.identity.id,
                counts.received,
                counts.other_cluster,
                counts.signature,
                counts.newer_version,
                counts.malformed,
                counts.unknown_slot,
                rings.replica.waiting()
            );
            (rows, note)
        }
    };
    let title = "Gossip".to_owned();
    TablePage { title, notes: vec![note], columns: &["id", "address"], rows, action: None }.answer(&headers)
}
