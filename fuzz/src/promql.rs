//! Any text as a query: what is parsed prints as text that means the same; regexes are bounded.

use skald_promql::parse::{ParseOptions, parse_expr, parse_matchers};

/// Queries of every kind.
pub fn seeds() -> Vec<Vec<u8>> {
    let queries = [
        r#"sum by (job, "weird name") (rate(http_requests_total{code=~"5..|4[0-9]{2}", path!~"/(?i:health).*"}[5m] offset 1m)) / on(job) group_left(x) up"#,
        r#"histogram_quantile(0.9, sum(rate({__name__=~"a|b", "x y"="é\n"}[1h30m:1m] @ end())) without (le))"#,
        "-1 ^ 2 * 0x1F + .5e-3 % Inf > bool NaN and vector(1) unless count_values(\"v\", x) # comment",
        "topk(3, max_over_time(x[step() + 2 * 1m])) fill(0) + limitk(2, smoothed_thing smoothed)",
        "label_replace(up, \"a\", \"$1\", \"b\", \"(.*)\") == 1_000 or absent(x{a=\"\"}) @ 1609746000.5",
        "{a=~\".+\",b!~\"(a{0,50}){2}\\\\d\"}",
    ];
    queries.map(|query| query.as_bytes().to_vec()).into()
}

/// Parses the bytes.
pub fn check(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = parse_matchers(text);
    let _ = parse_expr(text, &ParseOptions::default());
    let Ok(parsed) = parse_expr(text, &ParseOptions::ALL) else { return };
    let printed = parsed.to_string();
    let again = parse_expr(&printed, &ParseOptions::ALL);
    let again = again.unwrap_or_else(|error| panic!("{printed:?}: {error:?}"));
    assert_eq!(again.to_string(), printed);
}
