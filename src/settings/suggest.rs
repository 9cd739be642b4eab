//! "Did you mean …?" for names that do not exist.

/// The known name nearest to `given`, if one is near enough to be a slip of the pen.
///
/// Dotted names are also compared by their last part, so that `http_listen_address` finds
/// `server.http_listen_address`.
pub fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let fold = |name: &str| name.to_ascii_lowercase().replace('-', "_");
    let given = fold(given);
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    let given_last = last(&given);
    // About one slip in three letters; short names must be nearly right.
    let slips_allowed = |name: &str| (name.chars().count() / 3).clamp(1, 4);
    known
        .into_iter()
        .filter_map(|name| {
            let folded = fold(name);
            let whole = strsim::osa_distance(&given, &folded);
            let whole = (whole <= slips_allowed(&given)).then_some(whole);
            let by_last = strsim::osa_distance(&given_last, &last(&folded));
            let by_last = (by_last <= slips_allowed(&given_last) && given_last.len() > 3).then_some(by_last + 1);
            // Half of a long name is also worth a hint.
            let part = (given.len() > 5 && (folded.contains(&given) || given.contains(&folded))).then_some(5);
            Some((whole.into_iter().chain(by_last).chain(part).min()?, name))
        })
        .min_by_key(|(slips, name)| (*slips, name.len()))
        .map(|(_, name)| name)
}
