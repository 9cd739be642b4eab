//! When a member counts for reads: pure decisions.

use std::fmt::Write as _;

/// What is known of another member that was compared with, whole, since this process started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Compared {
    /// It counted for reads then.
    pub(super) repaired: bool,
    /// It had everything it ever acknowledged.
    pub(super) intact: bool,
}

/// What a decision needs to know.
#[derive(Debug, Clone, Copy)]
pub(super) struct Situation<'a> {
    /// Other members that a whole group has.
    pub(super) others: usize,
    /// Why this member may lack what it acknowledged; `None` if it does not.
    pub(super) gap: Option<&'a str>,
    /// The other members compared with.
    pub(super) compared: &'a [Compared],
}

/// Whether a member has all it needs.
///
/// - With a gap it needs every other member: a sample it acknowledged and lost may be with any one of them alone. That
///   is also how a new group begins, whose members are all blank: each sees all others, and has what they have.
/// - Without one it may answer, for it has what it acknowledged; it waits until it has what it missed, so that no two of
///   a group are behind at once. One repaired member has that. Where nobody is repaired, after all were
///   down, a majority of members without gaps is as good: each acknowledged sample is with a majority, so with one of these.
pub(super) fn is_repaired(situation: Situation<'_>) -> bool {
    let Situation { others, gap, compared } = situation;
    if compared.len() >= others {
        return true;
    }
    let intact = compared.iter().filter(|peer| peer.intact).count();
    gap.is_none() && (compared.iter().any(|peer| peer.repaired) || 2 * (intact + 1) > others + 1)
}

/// Why it does not, for people. `missing` are the members that were not compared with, and why not.
pub(super) fn explain(situation: Situation<'_>, known: usize, missing: &[(String, String)]) -> String {
    let Situation { others, gap, compared } = situation;
    let mut text = match gap {
        Some(gap) => format!("{gap}, so it needs every other member of its group"),
        None => "it needs a repaired member of its group, or a majority without gaps".to_owned(),
    };
    let _ = write!(text, "; {} of {others} compared", compared.len());
    if known < others {
        let _ = write!(text, "; only {known} known");
    }
    for (peer, why) in missing {
        let _ = write!(text, "; {peer}: {why}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLANK: Compared = Compared { repaired: false, intact: false };
    const INTACT: Compared = Compared { repaired: false, intact: true };
    const REPAIRED: Compared = Compared { repaired: true, intact: true };

    #[track_caller]
    fn check(others: usize, gap: bool, compared: &[Compared], expected: bool) {
        let situation = Situation { others, gap: gap.then_some("gap"), compared };
        assert_eq!(is_repaired(situation), expected, "{situation:?}");
    }

    #[test]
    fn who_lost_something_needs_all_others_and_who_did_not_needs_one() {
        check(0, true, &[], true);
        for gap in [true, false] {
            check(2, gap, &[], false);
            check(2, gap, &[BLANK], false);
            // A new group, and any other of which all were seen.
            check(2, gap, &[BLANK, BLANK], true);
            check(2, gap, &[INTACT, BLANK], true);
            check(2, gap, &[REPAIRED, REPAIRED], true);
        }
        check(2, true, &[REPAIRED], false);
        check(2, false, &[REPAIRED], true);
        // All were down, and one stays so.
        check(2, true, &[INTACT], false);
        check(2, false, &[INTACT], true);
        check(4, false, &[INTACT], false);
        check(4, false, &[INTACT, INTACT], true);
        check(1, false, &[], false);
        check(1, false, &[INTACT], true);
        check(3, false, &[INTACT], false);
        check(3, false, &[INTACT, BLANK, INTACT], true);
    }

    #[test]
    fn it_says_what_is_missing() {
        let situation = Situation { others: 2, gap: Some("the log is gone"), compared: &[BLANK] };
        let text = explain(situation, 2, &[("b-1".to_owned(), "connection refused".to_owned())]);
        assert_eq!(
            text,
            "the log is gone, so it needs every other member of its group; 1 of 2 compared; b-1: connection refused"
        );
        assert!(explain(Situation { gap: None, ..situation }, 1, &[]).ends_with("; only 1 known"));
    }
}
