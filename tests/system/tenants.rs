//! Two tenants with equal series, and 500 attempts of one to get at the other's: through headers, ids with path parts, federated
//! ids, label and parameter tricks, odd paths, admin pages, a connection that another tenant used. The attempts are drawn
//! from a seed (`TENANTS_SEED=n`), and made against one process and against every role in a process of its own, half of them
//! while samples are in memory, half once they are in blocks.
//!
//! What the other tenant has and the attacker must never see is marked: one value, and one text in labels and metadata.
//! The attacker's own answers must stay what they are, and the other's, too.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::differential::chance::Chance;
use crate::process::{Skald, now_ms, wait_for};
use crate::roles::Cluster;
use crate::sender::{Request, put_field};

const ATTEMPTS: usize = 500;
const ATTACKER: &str = "alpha";
const VICTIM: &str = "beta";
/// A value, and a text, that only the victim has.
const SECRET_VALUE: f64 = 0.713_171_317_1;
const SECRETS: [&str; 2] = ["0.7131713171", "beta-secret"];

/// What is under attack: where to write, where to read, who has admin pages.
struct Target<'a> {
    write: &'a Skald,
    read: &'a Skald,
    all: Vec<&'a Skald>,
    /// When the samples end, in milliseconds.
    end: i64,
}

/// Headers of a request as they are sent, line by line.
type Head = Vec<Vec<u8>>;

/// How a request names its tenant.
struct Naming {
    head: Head,
    /// Whether it is the attacker's own name, whatever comes along, and so may be answered with the attacker's data.
    is_own: bool,
}

fn line(text: &str) -> Vec<u8> {
    text.as_bytes().to_vec()
}

/// Every way of naming the victim without being it.
fn namings() -> Vec<Naming> {
    let refused = |lines: &[&str]| Naming { head: lines.iter().map(|l| line(l)).collect(), is_own: false };
    let own = |more: &str| Naming { head: vec![line("X-Scope-OrgID: alpha"), line(more)], is_own: true };
    let mut all = vec![
        refused(&[]),
        refused(&["X-Scope-OrgID: alpha", "X-Scope-OrgID: beta"]),
        refused(&["X-Scope-OrgID: beta", "X-Scope-OrgID: alpha"]),
        refused(&["X-Scope-OrgID: alpha", "x-scope-orgid: beta"]),
        refused(&["X-Scope-OrgID: alpha", "X-SCOPE-ORGID: beta"]),
        refused(&["X-Scope-OrgID : beta"]),
        refused(&["X-Scope-OrgID: alpha", "X-Scope-OrgID : beta"]),
        refused(&["X-Scope-OrgID: alpha", " beta"]),
        refused(&["X-Scope-OrgID:", " beta"]),
        refused(&["X-Scope_OrgID: beta"]),
        refused(&["X-Scope-OrgID: b\0eta"]),
        refused(&["X-Scope-OrgID: beta\0"]),
    ];
    for id in [
        "alpha|beta",
        "beta|alpha",
        "|beta",
        "beta|",
        "alpha|beta|",
        "alpha||beta",
        "alpha,beta",
        "beta,alpha",
        "alpha, beta",
        "alpha;beta",
        "alpha beta",
        "alpha&beta",
        "alpha/../beta",
        "../beta",
        "./beta",
        "beta/.",
        "beta/",
        "/beta",
        "//beta",
        "beta//",
        "alpha/beta",
        "beta/__name__",
        "beta\\",
        "..\\beta",
        "beta%2f",
        "%62eta",
        "beta%00",
        "%2e%2e/beta",
        "..",
        ".",
        "*",
        "b*",
        "beta*",
        "bet?",
        "{alpha,beta}",
        ".*",
        "Beta",
        "BETA",
        "\"beta\"",
        "'beta'",
        "beta.",
        "beta!",
        "b\u{435}ta",
        "beta\u{200b}",
        "__mimir_cluster",
        "__markers__",
        "user-index.json.gz",
        "beta\u{7f}",
        "$beta",
        "${beta}",
        "~beta",
        "",
    ] {
        all.push(refused(&[&format!("X-Scope-OrgID: {id}")]));
    }
    for more in [
        "X-Scope-OrgID-Override: beta",
        "X-Scope_OrgID: beta",
        "X_Scope_OrgID: beta",
        "X-ScopeOrgID: beta",
        "X-OrgID: beta",
        "X-Org-Id: beta",
        "X-Tenant-ID: beta",
        "THANOS-TENANT: beta",
        "X-Grafana-Org-Id: beta",
        "AccountID: beta",
        "Authorization: Basic YmV0YTpiZXRh",
        "Cookie: X-Scope-OrgID=beta; tenant=beta",
        "Forwarded: for=beta;host=beta",
        "X-Original-URL: /prometheus/api/v1/query?tenant=beta",
        "X-HTTP-Method-Override: DELETE",
        "grpc-metadata-x-scope-orgid: beta",
        "Connection: X-Scope-OrgID",
        "X-Query-Tags: tenant=beta",
        "Trailer: X-Scope-OrgID",
    ] {
        all.push(own(more));
    }
    all
}

/// Queries and selectors that ask for another tenant's series. Nothing of the kind is a label of the samples.
const SELECTORS: [&str; 12] = [
    "shared",
    "{__name__=~\".+\"}",
    "shared{__tenant_id__=\"beta\"}",
    "shared{__tenant_id__=~\"alpha|beta\"}",
    "shared{__org_id__=\"beta\"}",
    "{__name__=~\".+\",tenant=\"beta\"}",
    "{\"X-Scope-OrgID\"=\"beta\",__name__=~\".+\"}",
    "{owner=~\".*secret.*\"}",
    "private_beta",
    "{__name__=\"beta/shared\"}",
    "{__name__=\"../beta/shared\"}",
    "{vm_account_id=\"beta\",__name__=~\".+\"}",
];

/// Parameters that other systems choose tenants, stores or partitions by.
const PARAMETERS: [&str; 8] = [
    "",
    "&tenant=beta",
    "&X-Scope-OrgID=beta",
    "&orgID=beta&org_id=beta&tenant_id=beta",
    "&storeMatch%5B%5D=%7Btenant%3D%22beta%22%7D&dedup=false&partial_response=true",
    "&extra_label=tenant=beta&extra_filters%5B%5D=%7B__tenant__%3D%22beta%22%7D",
    "&match%5B%5D=%7B__tenant_id__%3D%22beta%22%7D",
    "&user=beta&userID=beta&__tenant_id__=beta",
];

/// Paths that lead elsewhere where somebody resolves or decodes them.
const PATHS: [&str; 12] = [
    "/prometheus/../beta/api/v1/query?query=shared",
    "/beta/prometheus/api/v1/query?query=shared",
    "/prometheus/beta/api/v1/query?query=shared",
    "/prometheus/api/v1/label/..%2f..%2fbeta%2f__name__/values",
    "/prometheus/api/v1/label/__name__%2f..%2f..%2fbeta/values",
    "/prometheus/api/v1/label/beta|__name__/values",
    "/prometheus/api/v1/tenants",
    "/api/v1/tenants/beta/series",
    "/select/beta/prometheus/api/v1/query?query=shared",
    "/ingester/../../beta/chunks/000001",
    "/static/..%2f..%2ftsdb%2fbeta",
    "//prometheus/api/v1/query?query=shared",
];

/// What operators see: names and counts of tenants, nothing of what these store.
const ADMIN: [&str; 14] = [
    "/",
    "/ready",
    "/metrics",
    "/config",
    "/services",
    "/ring",
    "/ingester/ring",
    "/memberlist",
    "/ingester/tenants",
    "/ingester/losses",
    "/ingester/repair",
    "/runtime_config",
    "/distributor/ha_tracker",
    "/distributor/all_user_stats",
];

fn encode(text: &str) -> String {
    form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

/// A GET that reads, as the attacker would send it for itself.
fn reading(chance: &Chance, end: i64) -> String {
    let selector = encode(chance.pick::<&str>(&SELECTORS));
    let parameters = *chance.pick::<&str>(&PARAMETERS);
    let (start, end) = ((end - 600_000) / 1000, end / 1000);
    let api = "/prometheus/api/v1";
    match chance.below(8) {
        0 => format!("{api}/query?query={selector}&time={end}{parameters}"),
        1 => format!("{api}/query?query=sum({selector})&time={end}{parameters}"),
        2 => format!("{api}/query_range?query={selector}&start={start}&end={end}&step=15{parameters}"),
        3 => format!("{api}/series?match%5B%5D={selector}&start={start}&end={end}{parameters}"),
        4 => format!("{api}/labels?start={start}&end={end}{parameters}"),
        5 => format!(
            "{api}/label/{}/values?start={start}&end={end}{parameters}",
            chance.pick(&["__name__", "owner", "job"])
        ),
        6 => format!("{api}/metadata?metric=private_beta{parameters}"),
        _ => format!("{api}/query_exemplars?query={selector}&start={start}&end={end}{parameters}"),
    }
}

/// Sends a request byte by byte as it is given; status and body. No answer at all counts as 0.
async fn send(address: &str, requests: &[Vec<u8>]) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let mut answer = Vec::new();
    for (at, request) in requests.iter().enumerate() {
        // A server may hang up on what it cannot read.
        let _ = stream.write_all(request).await;
        if at + 1 < requests.len() {
            read_one(&mut stream).await;
        }
    }
    let _ = stream.read_to_end(&mut answer).await;
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned();
    (status, body)
}

/// Reads one answer of a connection that goes on.
async fn read_one(stream: &mut TcpStream) {
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer).await.unwrap();
        answer.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8_lossy(&answer);
        let length = text.to_ascii_lowercase().split_once("content-length: ").map(|(_, rest)| rest.to_owned());
        let length = length.and_then(|rest| rest.split("\r\n").next()?.parse::<usize>().ok());
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body.len());
        // Without a length it comes in chunks, of which the last is empty.
        let whole =
            matches!((length, body), (Some(length), Some(body)) if body >= length) || text.ends_with("0\r\n\r\n");
        if whole || count == 0 {
            return;
        }
    }
}

fn request(method: &str, path: &str, head: &[Vec<u8>], body: &[u8], goes_on: bool) -> Vec<u8> {
    let mut bytes = format!("{method} {path} HTTP/1.1\r\nHost: skald\r\n").into_bytes();
    if !goes_on {
        bytes.extend_from_slice(b"Connection: close\r\n");
    }
    if !body.is_empty() {
        bytes.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
    }
    for line in head {
        bytes.extend_from_slice(line);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    bytes
}

/// Data without what differs from one answer to the next.
fn data(body: &str) -> Value {
    let start = body.find('{').unwrap_or_default();
    let end = body.rfind('}').map_or(body.len(), |at| at + 1);
    let json: Value = serde_json::from_str(&body[start..end]).unwrap_or(Value::Null);
    json["data"].clone()
}

async fn read_as(skald: &Skald, tenant: &str, path: &str) -> (u16, String) {
    let head = [line(&format!("X-Scope-OrgID: {tenant}"))];
    send(&skald.http_address(), &[request("GET", path, &head, &[], false)]).await
}

/// Series that both have, and some that only the victim has, with metadata and an exemplar.
async fn write_both(skald: &Skald, end: i64) {
    for (tenant, value) in [(ATTACKER, 1.0), (VICTIM, SECRET_VALUE)] {
        let times: Vec<(i64, f64)> = (0..20).map(|i| (end - i * 15_000, value)).rev().collect();
        let mut body = Request::default();
        for i in 0..10 {
            let instance = i.to_string();
            body = body.series(&[("__name__", "shared"), ("instance", &instance), ("job", "api")], &times);
        }
        if tenant == VICTIM {
            body = body.series(&[("__name__", "private_beta"), ("owner", "beta-secret")], &times);
            let mut metadata = vec![0x08, 1];
            put_field(&mut metadata, 2, b"private_beta");
            put_field(&mut metadata, 4, b"beta-secret");
            put_field(&mut body.bytes, 3, &metadata);
        }
        let answer = push_as(skald, &[line(&format!("X-Scope-OrgID: {tenant}"))], body).await;
        assert_eq!(answer.0, 200, "{}", answer.1);
    }
}

async fn push_as(skald: &Skald, head: &[Vec<u8>], body: Request) -> (u16, String) {
    let mut head = head.to_vec();
    head.extend([line("Content-Encoding: snappy"), line("Content-Type: application/x-protobuf")]);
    send(&skald.http_address(), &[request("POST", "/api/v1/push", &head, &body.body(), false)]).await
}

/// What both tenants see of themselves.
async fn own_views(target: &Target<'_>) -> [Value; 2] {
    let end = target.end / 1000;
    let path = format!(
        "/prometheus/api/v1/query?query=sort(count_over_time(%7B__name__%3D~%22.%2B%22%7D%5B1h%5D))&time={end}"
    );
    let mut views = [Value::Null, Value::Null];
    for (tenant, view) in [ATTACKER, VICTIM].iter().zip(&mut views) {
        let (status, body) = read_as(target.read, tenant, &path).await;
        assert_eq!(status, 200, "{body}");
        *view = data(&body);
    }
    views
}

/// One attempt: what it was, and what it got that it must not.
async fn attempt(chance: &Chance, target: &Target<'_>, namings: &[Naming]) -> Result<(), String> {
    let naming = chance.pick(namings);
    let own = [line("X-Scope-OrgID: alpha")];
    let (what, status, body, must_be) = match chance.below(10) {
        // Reading, with a name that is not the victim's.
        0..=4 => {
            let path = reading(chance, target.end);
            let (status, body) =
                send(&target.read.http_address(), &[request("GET", &path, &naming.head, &[], false)]).await;
            let must_be = naming.is_own.then(|| path.clone());
            if !naming.is_own && status == 200 && !is_empty(&data(&body)) {
                return Err(format!("GET {path} {}: {body}", shown(&naming.head)));
            }
            (format!("GET {path} {}", shown(&naming.head)), status, body, must_be)
        }
        // As itself, by a form.
        5 => {
            let path = reading(chance, target.end);
            let (path, form) = path.split_once('?').unwrap_or((&path, ""));
            let mut head = own.to_vec();
            head.push(line("Content-Type: application/x-www-form-urlencoded"));
            let sent = request("POST", path, &head, form.as_bytes(), false);
            let (status, body) = send(&target.read.http_address(), &[sent]).await;
            let must_be = (status == 200).then(|| format!("{path}?{form}"));
            (format!("POST {path} {form}"), status, body, must_be)
        }
        // Odd paths.
        6 => {
            let path = *chance.pick::<&str>(&PATHS);
            let at = *chance.pick(&target.all);
            let (status, body) = send(&at.http_address(), &[request("GET", path, &own, &[], false)]).await;
            (format!("GET {path}"), status, body, None)
        }
        // What operators see.
        7 => {
            let path = *chance.pick::<&str>(&ADMIN);
            let at = *chance.pick(&target.all);
            let head = [&naming.head[..], &[line("Accept: application/json")]].concat();
            let (status, body) = send(&at.http_address(), &[request("GET", path, &head, &[], false)]).await;
            (format!("GET {path} {}", shown(&naming.head)), status, body, None)
        }
        // Writing what should be the victim's.
        8 => {
            let labels: &[(&str, &str)] = chance.pick::<&[(&str, &str)]>(&[
                &[("__name__", "shared"), ("__tenant_id__", "beta"), ("instance", "0"), ("job", "api")],
                &[("__name__", "shared"), ("instance", "0"), ("job", "api"), ("tenant", "beta")],
                &[("X-Scope-OrgID", "beta"), ("__name__", "shared"), ("instance", "0")],
                &[("__name__", "../beta/shared"), ("instance", "0")],
                &[("__name__", "shared"), ("instance", "0"), ("job", "api")],
            ]);
            // Tenants nobody has heard of stay empty, so that whatever one of them sees is another's.
            let naming = if is_other_tenant(&naming.head) { &namings[1] } else { naming };
            // Never what the attacker itself has: its own view must not change.
            let time = if naming.is_own { target.end - 30 * 24 * 3_600_000 } else { target.end - 7_500 };
            let body = Request::default().series(labels, &[(time, 42.0)]);
            let (status, body) = push_as(target.write, &naming.head, body).await;
            if !naming.is_own && status == 200 {
                return Err(format!("push {}: {body}", shown(&naming.head)));
            }
            (format!("push {}", shown(&naming.head)), status, body, None)
        }
        // A connection that the victim used before.
        _ => {
            let path = reading(chance, target.end);
            let victims = request("GET", &path, &[line("X-Scope-OrgID: beta")], &[], true);
            let anonymous = chance.one_in(2);
            let head: &[Vec<u8>] = if anonymous { &[] } else { &own };
            let mine = request("GET", &path, head, &[], false);
            let (status, body) = send(&target.read.http_address(), &[victims, mine]).await;
            if anonymous && status == 200 {
                return Err(format!("GET {path} after the victim's: {body}"));
            }
            (format!("GET {path} after the victim's"), status, body, (!anonymous).then_some(path))
        }
    };
    if let Some(secret) = SECRETS.iter().find(|secret| body.contains(**secret)) {
        // What was asked for comes back in messages.
        let asked = what.contains(secret);
        if !asked {
            return Err(format!("{what}: {secret} in {status} {body}"));
        }
    }
    if let Some(path) = must_be {
        let expected = read_as(target.read, ATTACKER, &path).await;
        if (status, data(&body)) != (expected.0, data(&expected.1)) {
            return Err(format!("{what}: {status} {body}, but as itself {expected:?}"));
        }
    }
    Ok(())
}

fn shown(head: &[Vec<u8>]) -> String {
    head.iter().map(|line| format!("[{}]", String::from_utf8_lossy(line).escape_debug())).collect()
}

fn is_empty(data: &Value) -> bool {
    match data {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.get("result").map_or(fields.is_empty(), is_empty),
        _ => false,
    }
}

/// Some names are sound ones of tenants nobody has heard of.
fn is_other_tenant(head: &[Vec<u8>]) -> bool {
    let [one] = head else { return false };
    let name = String::from_utf8_lossy(one);
    let name = name.strip_prefix("X-Scope-OrgID: ").unwrap_or_default();
    name != VICTIM && name != ATTACKER && skald::tenant::TenantId::new(name).is_ok()
}

/// Directories and files that are called like one of the tenants, wherever they are.
fn tenants_on_disk(dir: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut waiting = vec![dir.to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            if path.is_dir() {
                waiting.push(path);
            }
            if name.contains("alpha") || name.to_ascii_lowercase().contains("eta") && !name.contains("meta") {
                found.insert(name);
            }
        }
    }
    found
}

async fn attack(target: &Target<'_>, chance: &Chance, dir: &Path, attempts: usize) {
    let namings = namings();
    let before = own_views(target).await;
    assert_eq!(before.clone().map(|view| view["result"].as_array().map(Vec::len)), [Some(10), Some(11)]);
    let mut crossed = Vec::new();
    for _ in 0..attempts {
        if let Err(what) = attempt(chance, target, &namings).await {
            crossed.push(what);
        }
    }
    assert!(crossed.is_empty(), "{} of {attempts} attempts: {crossed:#?}", crossed.len());
    assert_eq!(own_views(target).await, before, "somebody's samples changed");
    let odd = &tenants_on_disk(dir) - &BTreeSet::from([ATTACKER, VICTIM].map(str::to_owned));
    assert!(odd.is_empty(), "{odd:?}");
}

fn seed() -> u64 {
    let seed = std::env::var("TENANTS_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(1);
    println!("TENANTS_SEED={seed}");
    seed
}

#[tokio::test(flavor = "multi_thread")]
async fn no_attempt_crosses_from_one_tenant_to_another_in_one_process() {
    let dir = tempfile::tempdir().unwrap();
    let refresh = "--blocks-storage.bucket-index.refresh-interval=500ms";
    let skald = Skald::start(dir.path(), &["--multitenancy-enabled=true", refresh]).await;
    let end = now_ms() / 15_000 * 15_000;
    write_both(&skald, end).await;
    let target = Target { write: &skald, read: &skald, all: vec![&skald], end };
    let chance = Chance::seeded(seed());
    attack(&target, &chance, dir.path(), ATTEMPTS / 2).await;
    assert_eq!(skald.post("/ingester/flush").await.status, 204);
    attack(&target, &chance, dir.path(), ATTEMPTS / 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_attempt_crosses_from_one_tenant_to_another_between_processes() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path(), &["--multitenancy-enabled=true"]).await;
    let end = now_ms() / 15_000 * 15_000;
    write_both(&cluster.distributor, end).await;
    let chance = Chance::seeded(seed() ^ 0xFF);
    let target = Target { write: &cluster.distributor, read: &cluster.query_frontend, all: cluster.every(), end };
    attack(&target, &chance, dir.path(), ATTEMPTS / 2).await;
    assert_eq!(cluster.ingester.post("/ingester/flush").await.status, 204);
    wait_for("the views from blocks", 20, || async {
        let views = own_views(&target).await;
        (views[1]["result"].as_array().map(Vec::len) == Some(11)).then_some(())
    })
    .await;
    attack(&target, &chance, dir.path(), ATTEMPTS / 2).await;
}
