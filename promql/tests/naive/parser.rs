//! The parser under garbage: it never panics, needs little stack, and takes time in proportion to the text. What it
//! accepts prints as what parses to the same.

use std::time::{Duration, Instant};

use skald_promql::ast::Expr;
use skald_promql::parse::{MAX_BYTES, ParseOptions, parse_expr, parse_matchers};

use crate::queries::Queries;
use crate::random::Random;
use crate::setting;

/// What the module's documentation promises to do with in debug builds.
const STACK: usize = 1 << 20;

/// Runs `test` with little stack.
fn on_small_stack(test: impl FnOnce() + Send + 'static) {
    let thread = std::thread::Builder::new().stack_size(STACK).spawn(test).expect("a thread");
    thread.join().expect("no panic, no overflow");
}

/// Parses; whatever comes of it is walked in every way there is.
fn parses(text: &str) -> Option<Expr> {
    let expr = parse_expr(text, &ParseOptions::ALL).ok()?;
    let printed = expr.to_string();
    if printed.len() > MAX_BYTES {
        return Some(expr);
    }
    let again = parse_expr(&printed, &ParseOptions::ALL).unwrap_or_else(|e| panic!("{text}\n{printed}\n{e}"));
    assert_eq!(again.to_string(), printed, "printing and parsing {text:?} once more changes it");
    assert_eq!(again.to_json().len(), expr.to_json().len(), "{text:?} is not what its print {printed:?} is");
    if let Some(pretty) = expr.prettify(MAX_BYTES) {
        let again = parse_expr(&pretty, &ParseOptions::ALL).unwrap_or_else(|e| panic!("{text}\n{pretty}\n{e}"));
        assert_eq!(again.to_string(), printed, "{pretty}");
    }
    drop(expr.clone());
    Some(expr)
}

const TOKENS: &[&str] = &[
    "(",
    ")",
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    "=",
    "!=",
    "=~",
    "!~",
    "+",
    "-",
    "*",
    "/",
    "%",
    "^",
    "==",
    ">",
    "<",
    ">=",
    "<=",
    "</",
    ">/",
    "@",
    "by",
    "without",
    "on",
    "ignoring",
    "group_left",
    "group_right",
    "bool",
    "offset",
    "and",
    "or",
    "unless",
    "atan2",
    "sum",
    "topk",
    "count_values",
    "limit_ratio",
    "rate",
    "info",
    "time",
    "start",
    "end",
    "step",
    "range",
    "min_of",
    "max_of",
    "fill",
    "fill_left",
    "fill_right",
    "anchored",
    "smoothed",
    "x",
    "x:y",
    "__name__",
    "le",
    "1",
    "0x1F",
    "1e3",
    ".5",
    "5m",
    "1h30m",
    "-1",
    "Inf",
    "NaN",
    "1_000",
    "\"a\"",
    "'b'",
    "`c`",
    "\"\\n\\x41\\u00e9\"",
    "\"",
    "'",
    "#",
    "\n",
    "é",
    "\u{FFFD}",
    "$",
    "_",
    "1s1ms",
    "9223372036854775807",
    "{\"a b\"}",
    "x{a=\"b\"}",
    "x[5m]",
    "x[1h:5m]",
    "x[1m]",
    "\\",
    "&",
    ";",
];

fn soup(random: &mut Random) -> String {
    let count = random.below(25);
    let mut text = String::new();
    for _ in 0..count {
        text += random.one_of(TOKENS);
        text += random.one_of(&["", " ", " "]);
    }
    text
}

fn noise(random: &mut Random) -> String {
    let bytes: Vec<u8> = (0..random.below(40)).map(|_| random.below(256) as u8).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A valid query with a few parts cut out, doubled, moved or replaced.
fn mutated(random: &mut Random) -> String {
    let (start, end) = (0, 600_000);
    let text = Queries { random, start, end }.query();
    let mut chars: Vec<char> = text.chars().collect();
    for _ in 0..random.between(1, 4) {
        let at = random.below(chars.len() as u64 + 1) as usize;
        let to = (at + random.below(6) as usize).min(chars.len());
        match random.below(4) {
            0 => drop(chars.drain(at..to)),
            1 => {
                let part: Vec<char> = chars[at..to].to_vec();
                let place = random.below(chars.len() as u64 + 1) as usize;
                drop(chars.splice(place..place, part));
            }
            2 => drop(chars.splice(at..to, random.one_of(TOKENS).chars())),
            _ => drop(chars.splice(at..at, soup(random).chars().take(8))),
        }
    }
    chars.into_iter().collect()
}

#[test]
fn garbage_is_refused_or_means_something() {
    let (seed, cases) = (setting("SKALD_NAIVE_SEED", 1), setting("SKALD_NAIVE_QUERIES", 3000));
    on_small_stack(move || {
        let mut random = Random::new(seed ^ 0x9A25E);
        let (mut accepted, mut of) = ([0; 4], [0; 4]);
        for _ in 0..cases {
            for kind in 0..4 {
                let text = match kind {
                    0 => noise(&mut random),
                    1 => soup(&mut random),
                    2 => mutated(&mut random),
                    _ => Queries { random: &mut random, start: 0, end: 600_000 }.query(),
                };
                of[kind] += 1;
                accepted[kind] += u64::from(parses(&text).is_some());
                let _ = parse_matchers(&text);
            }
        }
        println!(
            "accepted: noise {}, soup {}, mutated {}, queries {}",
            accepted[0], accepted[1], accepted[2], accepted[3]
        );
        assert_eq!(accepted[3], of[3], "every random query parses");
        assert!(accepted[2] * 20 > of[2], "too few of the mutated queries mean anything");
    });
}

/// Texts made to need much of something, so many times longer than usual.
fn hostile(n: usize) -> Vec<String> {
    let r = |text: &str| text.repeat(n);
    let wrap = |open: &str, inner: &str, close: &str| format!("{}{inner}{}", r(open), r(close));
    let mut all: Vec<String> = ["(", "[", "{", "-", "+", "!", "\"", "sum(", "x[", "x{", "x offset ", "x @ ", "#", "\n"]
        .into_iter()
        .map(r)
        .collect();
    all.extend([
        wrap("(", "1", ")"),
        wrap("-", "x", ""),
        wrap("- ", "1", ""),
        wrap("abs(", "x", ")"),
        wrap("sum(", "x", ")"),
        wrap("sum by (a) (", "x", ")"),
        wrap("max_over_time(", "x", "[1m:])"),
        wrap("label_replace(", "x", ", \"a\", \"b\", \"c\", \"d\")"),
        wrap("1 + ", "1", ""),
        wrap("x and ", "x", ""),
        wrap("2 ^ ", "2", ""),
        wrap("x or (", "x", ")"),
        wrap("vector(scalar(", "x", "))"),
        wrap("topk(1, ", "x", ")"),
        wrap("histogram_quantile(0.5, ", "x", ")"),
        format!("x[{}]", wrap("(", "1", ")")),
        format!("x[{}]", wrap("1m+", "1m", "")),
        format!("x[{}]", wrap("-", "1m", "")),
        format!("x[{}]", wrap("max_of(1m, ", "1m", ")")),
        format!("x offset {}", wrap("(", "1", ")")),
        format!("x{{{}}}", r("a=\"b\",")),
        format!("x{{a=~\"{}\"}}", r("(a|b)*")),
        format!("x{{a=~\"{}\"}}", wrap("(", "a", ")")),
        format!("x{{a=~\"{}\"}}", r("a{100}")),
        format!("x{{{}}}", r("a=~\"(x+x+)+y\",")),
        format!("sum by ({}) (x)", r("a,")),
        format!("x + on ({}) y", r("a,")),
        format!("label_join(x, \"a\", \",\"{})", r(", \"b\"")),
        format!("x[{}m]", r("9")),
        format!("x[{}]", r("1m")),
        format!("x[{}]", r("1h1m1s")),
        format!("x offset -{}y", r("9")),
        format!("x @ {}", r("9")),
        r("9"),
        format!("0x{}", r("F")),
        format!("1e{}", r("9")),
        format!("0.{}1", r("0")),
        format!("\"{}\"", r("\\u00e9")),
        format!("\"{}\"", r("a")),
        r("x"),
        r("é"),
        r("x "),
        r("x{a=\"b\"} "),
        r("1 "),
        format!("count_values(\"{}\", x)", r("v")),
    ]);
    all
}

#[test]
#[expect(clippy::disallowed_methods, reason = "what is tested is how long it takes")]
fn hostile_texts_cost_little() {
    on_small_stack(|| {
        for n in [10, 400, 990, 10_000] {
            for text in hostile(n) {
                let begun = Instant::now();
                let expr = parses(&text);
                let _ = parse_matchers(&text);
                let took = begun.elapsed();
                // Debug builds on a busy machine; what is quadratic would take hours.
                let limit = Duration::from_secs(20);
                assert!(took < limit, "{took:?} for {} bytes of {:?}", text.len(), &text[..text.len().min(20)]);
                drop(expr);
            }
        }
    });
}
