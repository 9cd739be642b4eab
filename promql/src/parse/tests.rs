use proptest::prelude::*;

use super::testing::{any_query, seeded};
use super::*;
use crate::ast::{AtModifier, Binary, BinaryOp, Cardinality, Duration, EdgeMode, ValueType};

fn parse(query: &str) -> Result<Expr, ParseError> {
    parse_expr(query, &ParseOptions::ALL)
}

/// `query` is refused with `message` at byte `start`.
#[track_caller]
fn refuse_with(options: &ParseOptions, query: &str, start: usize, message: &str) {
    match parse_expr(query, options) {
        Ok(expr) => panic!("{query} parses as {expr}"),
        Err(e) => assert_eq!((e.span.start, e.message.as_str()), (start, message), "{query}"),
    }
}

#[track_caller]
fn refuse(query: &str, start: usize, message: &str) {
    refuse_with(&ParseOptions::ALL, query, start, message);
}

#[test]
fn accepted() {
    for query in [
        // Numbers, strings and durations.
        "1",
        "5.",
        ".5",
        "0x1F",
        "010",
        "08",
        "1_000.5e-3",
        "+Inf",
        "nan",
        "1h30m",
        "'a'",
        "`\\`",
        "\"\\u263a\"",
        "# c\n1 # d",
        // Operators.
        "1 + 2 * 3 ^ 4 % 5 / 6 atan2 7 - 8",
        "1 == bool 1",
        "a </ 1 >/ b",
        "a and b or c unless d",
        "- - + a",
        "1-1",
        "a + ON (b,) GROUP_LEFT c",
        "a * ignoring () group_right (x, 'y z') c",
        "a == bool on (b) c",
        "a + fill (1) b",
        "a + fill_left (-1h) fill_right (+2) b",
        "fill + fill_left",
        // Names that are keywords elsewhere.
        "sum",
        "by",
        "without",
        "offset",
        "offset offset 5m",
        "and and and",
        "or or or",
        "unless unless unless",
        "start",
        "end",
        "step",
        "range",
        "min_of",
        "max_of",
        "anchored anchored",
        "smoothed{smoothed='x'}",
        "count_values",
        "limitk",
        "sum(sum)",
        "sum by (by, on, and, atan2, start, bool, a:b) (x)",
        "x{by='a', on=~'b', inf!='c'}",
        "Sum:x",
        "infi",
        // Selectors.
        "x",
        "x{}",
        "x{a='b',}",
        "{a='b'}",
        "{'x'}",
        "{'x y', 'z'='1'}",
        "{__name__=~'a', __name__!~'b'}",
        "{a!=''}",
        "x offset 5m",
        "x offset -5m",
        "x offset +5",
        "x @ 1",
        "x @ -1.5",
        "x @ start()",
        "x @ end () offset 1m",
        "x @ 1h",
        "x[5m]",
        "x [ 5m ]",
        "x[300]",
        "x[5m] offset 1m @ 5",
        "x[1h:5m]",
        "x[1h:]",
        "x[1h : 5m] @ start()",
        "x smoothed",
        "x[5m] anchored",
        "(x)[5m:]",
        "x offset 1m[5m:]",
        "sum(x)[5m:1m] offset -1m",
        "'a'",
        // Calls and aggregations.
        "time()",
        "rate(x[5m])",
        "label_join(x, 'a', 'b')",
        "label_join(x, 'a', 'b', 'c', 'd')",
        "round(x)",
        "round(x, 5)",
        "hour()",
        "sum(x) by (a)",
        "sum by (a) (x)",
        "topk without () (3, x)",
        "count_values('a', x)",
        "limit_ratio(-0.5, x)",
        "info(x)",
        "info(x, {a=~'.*'})",
        "info(x, {})",
        "start() + end() + step() + range() + min_of(1, max_of(2, 3))",
        // Duration expressions.
        "x[5m*2]",
        "x[-5m+10m]",
        "x[(5m)]",
        "x[step()]",
        "x[max_of(range(), 1m) % 7:step() ^ 1]",
        "x offset (5m * 2)",
        "x offset 5m * 2",
        "x offset - -5m",
        "x offset -min_of(1, 2)",
        "x[1m:STEP()]",
    ] {
        if let Err(e) = parse(query) {
            panic!("{query}: {e}");
        }
    }
}

#[test]
fn refused_by_the_lexer() {
    refuse(".", 0, "unexpected character: '.'");
    refuse("2.5.", 0, r#"bad number or duration syntax: "2.5.""#);
    refuse("100..4", 0, r#"bad number or duration syntax: "100..""#);
    refuse("0deadbeef", 0, r#"bad number or duration syntax: "0de""#);
    refuse("x[5mm]", 2, r#"bad number or duration syntax: "5mm""#);
    refuse("1 =~ 1", 2, "unexpected character after '=': '~'");
    refuse("1 !~ 1", 2, "unexpected character after '!': '~'");
    refuse("a !", 2, "unexpected character after '!': '\u{fffd}'");
    refuse("é", 0, "unexpected character: 'é'");
    refuse("a $ b", 2, "unexpected character: '$'");
    refuse("(1))", 4, "unexpected right parenthesis ')'");
    refuse("((1)", 4, "unclosed left parenthesis");
    refuse("sum(rate(", 9, "unclosed left parenthesis");
    refuse("x[5m", 4, "unclosed left bracket");
    refuse("x[", 2, "unexpected end of input in duration expression");
    refuse("x[5m[", 4, "unexpected left bracket '['");
    refuse("x]", 1, "unexpected right bracket ']'");
    refuse("x}", 1, "unexpected character: '}'");
    refuse("{", 1, "unexpected end of input inside braces");
    refuse("x{{", 2, "unexpected left brace '{'");
    refuse("x{1}", 2, "unexpected character inside braces: '1'");
    refuse("x{a:b='c'}", 3, "unexpected character inside braces: ':'");
    refuse("x{a!b}", 3, "unexpected character after '!' inside braces: 'b'");
    refuse("x[5m:1m:]", 7, "unexpected colon ':'");
    refuse("x[:5m]", 3, "unexpected colon before duration in duration expression");
    refuse("x[5s x]", 5, "unexpected character: 'x', expected ':'");
    refuse("x[y]", 2, "unexpected character in duration expression: 'y'");
    refuse("'a", 0, "unterminated quoted string");
    refuse("'a\n'", 0, "unterminated quoted string");
    refuse("`a", 0, "unterminated raw string");
    refuse("'\\", 0, "escape sequence not terminated");
    refuse("'\\c'", 0, "unknown escape sequence U+0063 'c'");
    refuse("\"\\'\"", 0, "unknown escape sequence U+0027 '''");
    refuse("'\\x.'", 0, "illegal character U+002E '.' in escape sequence");
    refuse("'\\400'", 0, "escape sequence is an invalid Unicode code point");
    refuse("'\\ud800'", 0, "escape sequence is an invalid Unicode code point");
    refuse("x{a='\u{fffd}'}", 4, "invalid UTF-8 rune");
}

#[test]
fn refused_by_the_grammar() {
    refuse("", 0, "no expression found in input");
    refuse("# nothing\n\n", 0, "no expression found in input");
    refuse("1+", 2, "unexpected end of input");
    refuse("*1", 0, "unexpected <op:*>");
    refuse("a b", 2, r#"unexpected identifier "b""#);
    refuse("a b:c", 2, r#"unexpected metric identifier "b:c""#);
    refuse("a 1234567890123", 2, r#"unexpected number "1234567890"..."#);
    refuse("a 5m", 2, r#"unexpected duration "5m""#);
    refuse("a 'b'", 2, r#"unexpected string "'b'""#);
    refuse("a sum", 2, "unexpected <aggr:sum>");
    refuse("a by", 2, "unexpected <by>");
    refuse("a start", 2, r#"unexpected "start""#);
    refuse("a = b", 2, r#"unexpected "=""#);
    refuse("@@", 0, "unexpected <op:@>");
    refuse("a,b", 1, r#"unexpected ",""#);
    refuse("(a,b)", 2, r#"unexpected ",""#);
    refuse("a:b()", 3, r#"unexpected "(""#);
    refuse("bool", 0, "unexpected <bool>");
    refuse("a - on(b) ignoring(c) d", 10, "unexpected <ignoring>");
    refuse("a + group_left(b) c", 4, "unexpected <group_left>");
    refuse("sum by (a) b", 11, r#"unexpected identifier "b" in aggregation"#);
    refuse("sum(a b)", 6, r#"unexpected identifier "b" in aggregation"#);
    refuse("sum(rate(a b))", 11, r#"unexpected identifier "b" in aggregation"#);
    refuse("sum(a) b", 7, r#"unexpected identifier "b""#);
    refuse("sum a", 4, r#"unexpected identifier "a""#);
    refuse("sum(a) by b", 10, r#"unexpected identifier "b" in grouping opts, expected "(""#);
    refuse("sum(a) by (b) by (c)", 14, "unexpected <by>");
    refuse("sum by (==) (a)", 8, "unexpected <op:==> in grouping opts, expected label");
    refuse("sum by (a b) (c)", 10, r#"unexpected identifier "b" in grouping opts, expected "," or ")""#);
    refuse("sum by (without) (a)", 8, "unexpected <without> in grouping opts, expected label");
    refuse("sum by (a,,) (b)", 10, r#"unexpected "," in grouping opts, expected label"#);
    refuse("sum by ('') (a)", 8, r#"invalid label name for grouping: """#);
    refuse("a + on (b) group_left", 21, r#"unexpected end of input in grouping opts, expected "(""#);
    refuse("x{a=b}", 4, r#"unexpected identifier "b" in label matching, expected string"#);
    refuse("x{a}", 3, r#"unexpected "}" in label matching, expected label matching operator"#);
    refuse("x{,}", 2, r#"unexpected "," in label matching, expected identifier or "}""#);
    refuse("x{a='b' c}", 8, r#"unexpected identifier "c" in label matching, expected "," or "}""#);
    refuse("x{a='b' or c='d'}", 8, r#"unexpected identifier "or" in label matching, expected "," or "}""#);
    refuse("{'a' 'b'}", 5, r#"unexpected string "'b'" in label matching, expected "," or "}""#);
    refuse("x[]", 2, r#"unexpected "]" in subquery or range selector, expected number, duration, step(), or range()"#);
    refuse("x[5m 5m]", 5, r#"unexpected duration "5m" in subquery or range, expected ":" or "]""#);
    refuse(
        "x[5m:'a']",
        5,
        r#"unexpected string "'a'" in subquery selector, expected number, duration, step(), range(), or "]""#,
    );
    refuse("x[5m:5m 5m]", 8, r#"unexpected duration "5m" in subquery selector, expected "]""#);
    refuse("x offset", 8, "unexpected end of input in offset, expected number, duration, step(), or range()");
    refuse("x @", 3, "unexpected end of input in @, expected timestamp");
    refuse("x @ start", 9, "unexpected end of input in @, expected timestamp");
    refuse("foo(a,)", 5, "trailing commas not allowed in function call args");
    refuse("a + fill (b) c", 10, r#"unexpected identifier "b""#);
}

#[test]
fn refused_while_reading() {
    refuse("1e1000", 0, r#"error parsing number: strconv.ParseFloat: parsing "1e1000": value out of range"#);
    refuse("1.5m", 0, r#"unknown unit "." in duration "1.5m""#);
    refuse("x[5m1h]", 2, r#"not a valid duration string: "5m1h""#);
    refuse("x[5y1hs]", 2, r#"unknown unit "hs" in duration "5y1hs""#);
    refuse("x[300y]", 2, "duration out of range");
    refuse("x[0m]", 2, "duration must be greater than 0");
    refuse("x[-1]", 2, "duration must be greater than 0");
    refuse("x[1m:0s]", 5, "duration must be greater than 0");
    refuse("x offset 9.5e10", 9, "duration out of range");
    refuse("x offset - inf", 9, "duration out of range");
    refuse("x[5s/0]", 4, "division by zero");
    refuse("x[5s%0s]", 4, "modulo by zero");
    refuse("nope()", 0, r#"unknown function with name "nope""#);
    refuse("Rate(x[5m])", 0, r#"unknown function with name "Rate""#);
    refuse("START()", 0, r#"unknown function with name "START""#);
    refuse("sum() by (a)", 0, "no arguments for aggregate expression provided");
    refuse("topk(a)", 0, "wrong number of arguments for aggregate expression provided, expected 2, got 1");
    refuse("1 + sum(a, b)", 4, "wrong number of arguments for aggregate expression provided, expected 1, got 2");
    refuse("(a)[5m]", 3, "ranges only allowed for vector selectors");
    refuse("a[5m][5m]", 5, "ranges only allowed for vector selectors");
    refuse("a offset 1m[5m]", 11, "no offset modifiers allowed before range");
    refuse("a @ 1 [5m]", 6, "no @ modifiers allowed before range");
    let offset =
        "offset modifier must be preceded by an instant vector selector or range vector selector or a subquery";
    refuse("1 offset 1d", 0, offset);
    refuse("b + sum(a) offset 1d", 4, offset);
    refuse("a offset 1s offset 2s", 0, "offset may not be set multiple times");
    let at = "@ modifier must be preceded by an instant vector selector or range vector selector or a subquery";
    refuse("rate(a[5m]) @ 1", 0, at);
    refuse("a @ 1 @ start()", 0, "@ <timestamp> may not be set multiple times");
    refuse("a @ Inf", 0, "timestamp out of bounds for @ modifier: +Inf");
    refuse("a @ -1e19", 0, "timestamp out of bounds for @ modifier: -10000000000000000000.000000");
    refuse("a anchored smoothed", 0, "anchored and smoothed modifiers cannot be used together");
    refuse("a[1m:] smoothed", 0, "smoothed modifier is not supported for subqueries");
    refuse("1 anchored", 0, "anchored modifier not implemented");
}

#[test]
fn refused_for_their_types() {
    refuse("{}", 0, "vector selector must contain at least one non-empty matcher");
    refuse("1 + {a=~'.*', b!='c'}", 4, "vector selector must contain at least one non-empty matcher");
    refuse("x{__name__='y'}", 0, r#"metric name must not be set twice: "x" or "y""#);
    refuse("x{'y'}", 0, r#"metric name must not be set twice: "x" or "y""#);
    refuse("1 == 2", 2, "comparisons between scalars must use BOOL modifier");
    refuse("a + bool b", 2, "bool modifier can only be used on comparison operators");
    refuse("a and 1", 0, r#"set operator "and" not allowed in binary scalar expression"#);
    refuse("a == on (b) 1", 0, "vector matching only allowed between instant vectors");
    refuse("a + fill (1) 1", 0, "filling in missing series only allowed between instant vectors");
    refuse("a or fill (1) b", 0, "filling in missing series not allowed for set operators");
    refuse("a and on (b) group_left c", 0, r#"no grouping allowed for "and" operation"#);
    refuse("a + on (b, c) group_left (d, c) e", 2, r#"label "c" must not occur in ON and GROUP clause at once"#);
    refuse("a + 'b'", 4, "binary expression must contain only scalar and instant vector types");
    refuse("x[5m] + 1", 0, "binary expression must contain only scalar and instant vector types");
    let unary = "unary expression only allowed on expressions of type scalar or instant vector";
    refuse("-'a'", 0, &format!(r#"{unary}, got "string""#));
    refuse("1 + -x[5m]", 4, &format!(r#"{unary}, got "range vector""#));
    refuse("1[5m:]", 0, "subquery is only allowed on instant vector, got scalar instead");
    refuse("x[5m:][1h:]", 0, "subquery is only allowed on instant vector, got matrix instead");
    refuse("sum(1)", 4, "expected type instant vector in aggregation expression, got scalar");
    refuse("topk(a, b)", 5, "expected type scalar in aggregation parameter, got instant vector");
    refuse("count_values(5, b)", 13, "expected type string in aggregation parameter, got scalar");
    refuse("abs()", 0, r#"expected 1 argument(s) in call to "abs", got 0"#);
    refuse("rate(a[5m], b)", 0, r#"expected 1 argument(s) in call to "rate", got 2"#);
    refuse("hour(a, b)", 0, r#"expected at most 1 argument(s) in call to "hour", got 2"#);
    refuse("label_join(a, 'b')", 0, r#"expected at least 3 argument(s) in call to "label_join", got 2"#);
    refuse("rate(a)", 5, r#"expected type range vector in call to function "rate", got instant vector"#);
    refuse("abs('a')", 4, r#"expected type instant vector in call to function "abs", got string"#);
    refuse("label_join(a, 'b', 'c', 1)", 24, r#"expected type string in call to function "label_join", got scalar"#);
    refuse("info(a, b{c='d'})", 8, "expected label selectors only, got vector selector instead");
    refuse("info(a, {b='c'} == 1)", 8, "expected label selectors only");
    refuse("info(a, 1)", 0, r#"expected type instant vector in call to function "info", got scalar"#);
}

#[test]
fn experimental_parts_need_their_option() {
    let off = ParseOptions::default();
    let refuse = |query: &str, start: usize, message: &str| refuse_with(&off, query, start, message);
    refuse("1 + info(x)", 4, r#"function "info" is not enabled"#);
    refuse("step()", 0, r#"function "step" is not enabled"#);
    let aggregation = "is experimental and must be enabled with --enable-feature=promql-experimental-functions";
    refuse("limitk(1, x)", 0, &format!("limitk() {aggregation}"));
    refuse("limit_ratio(1, x)", 0, &format!("limit_ratio() {aggregation}"));
    refuse("x[5m*2]", 2, "experimental duration expression is not enabled");
    refuse("x[(5m)]", 3, "experimental duration expression is not enabled");
    refuse("x offset -step()", 9, "experimental duration expression is not enabled");
    refuse("x[min_of(1, 2)]", 9, "experimental duration expression is not enabled");
    refuse("x offset -min_of(1, 2)", 9, "experimental duration expression is not enabled");
    refuse("x offset -(1 + 2)", 11, "experimental duration expression is not enabled");
    assert!(parse_expr("x offset -(5m)", &off).is_ok());
    refuse("x offset step()", 9, "experimental duration expression is not enabled");
    refuse("x smoothed", 0, "smoothed modifier is experimental and not enabled");
    refuse("rate(x[5m] anchored)", 5, "anchored modifier is experimental and not enabled");
    refuse("1 + a + fill (1) b", 0, "binop fill modifiers are experimental and not enabled");
    assert!(parse_expr("x offset -5m + x[-5m:]", &off).is_err());
    assert!(parse_expr("rate(x[5m] offset -5m @ start()) + on () x", &off).is_ok());
}

#[test]
fn errors_print_line_and_column() {
    let check = |query: &str, text: &str| assert_eq!(parse(query).unwrap_err().to_string(), text);
    check("", "unknown position: parse error: no expression found in input");
    check("#", "1:1: parse error: no expression found in input");
    check("a +", "1:4: parse error: unexpected end of input");
    check("a +\n  sum(\n'é' b)", "3:6: parse error: unexpected identifier \"b\" in aggregation");
    assert_eq!(line_and_column("ab\ncd", 4), (2, 2));
    assert_eq!(line_and_column("ab\ncd", 99), (2, 3));
}

#[test]
fn regexes_that_do_not_compile_are_refused() {
    let e = parse("x + y{a='b', c=~'('}").unwrap_err();
    assert_eq!(e.span, Span { start: 13, end: 19 });
    assert!(e.message.starts_with("error parsing regexp: "), "{e}");
}

#[test]
fn matchers_of_selectors() {
    let check = |text: &str, matchers: &str| {
        let parsed: Vec<String> = parse_matchers(text).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(parsed.join(" "), matchers, "{text}");
    };
    check("up", r#"__name__="up""#);
    check("{}", "");
    check("sum{a!~'b|c', \"d\"='e',}", r#"a!~"b|c" d="e" __name__="sum""#);
    check("{'my metric'}", r#"__name__="my metric""#);
    check("x{__name__='y'}", r#"__name__="y" __name__="x""#);
    for text in ["", "1", "x[5m]", "x offset 5m", "x + y", "sum(x)", "(x)", "on", "x @ 1", "x{a}", "x{a=~'('}"] {
        assert!(parse_matchers(text).is_err(), "{text}");
    }
    assert_eq!(parse_matchers("").unwrap_err().to_string(), "unknown position: parse error: unexpected end of input");
}

fn text_of(query: &str, span: Span) -> &str {
    &query[span.start..span.end]
}

#[test]
fn nodes_know_where_they_stand() {
    let query = " sum by (a) ( rate(x{a='b'}[5m] offset 1m @ 5) ) + on (b) -y offset 3 ^ ('z' ) ";
    let message = "binary expression must contain only scalar and instant vector types";
    refuse(query, query.find("('z'").unwrap(), message);
    let query = query.replace("'z'", "2.5");
    let expr = parse(&query).unwrap();
    let texts: Vec<&str> = expr.descendants().map(|e| text_of(&query, e.span())).collect();
    let expected = [
        query.trim(),
        "sum by (a) ( rate(x{a='b'}[5m] offset 1m @ 5) )",
        "rate(x{a='b'}[5m] offset 1m @ 5)",
        "x{a='b'}[5m] offset 1m @ 5",
        "-y offset 3 ^ (2.5 )",
        "y offset 3 ^ (2.5 )",
        "y offset 3",
        "(2.5 )",
        "2.5",
    ];
    assert_eq!(texts, expected);
    let Expr::Binary(binary) = &expr else { panic!() };
    assert_eq!(text_of(&query, binary.op_span), "+");
    assert_eq!(expr.selectors().map(|s| text_of(&query, s.span)).collect::<Vec<_>>(), ["x{a='b'}", "y offset 3"]);
    let query = "quantile by (c) (1, (a[5m:1m] @ end()))";
    let message = "expected type instant vector in aggregation expression, got range vector";
    refuse(query, query.find("(a[").unwrap(), message);
}

#[test]
fn the_tree_says_what_the_query_says() {
    let expr = parse("a[90s] @ 1.5 offset -2m smoothed").unwrap();
    let Expr::Matrix(matrix) = expr else { panic!() };
    assert_eq!(matrix.range, Duration::Literal(90_000));
    let selector = matrix.selector;
    assert_eq!((selector.at, selector.offset), (Some(AtModifier::Timestamp(1500)), Some(Duration::Literal(-120_000))));
    assert_eq!((selector.name.as_deref(), selector.edges), (Some("a"), EdgeMode::Smoothed));
    let matching = |query: &str| match parse(query).unwrap() {
        Expr::Binary(Binary { matching, .. }) => matching,
        other => panic!("{other}"),
    };
    assert_eq!(matching("a + 1"), None);
    assert_eq!(matching("a + b").unwrap().cardinality, Cardinality::OneToOne);
    assert_eq!(matching("a or b").unwrap().cardinality, Cardinality::ManyToMany);
    let m = matching("a + on (x) group_right (y) fill_left (-1) fill_right (2) b").unwrap();
    assert_eq!(
        (m.cardinality, m.on, m.labels, m.include),
        (Cardinality::OneToMany, true, vec!["x".into()], vec!["y".into()])
    );
    assert_eq!((m.fill_left, m.fill_right), (Some(-1.0), Some(2.0)));
    assert_eq!(parse("x[1.0006]").unwrap(), parse("x[1.0001]").unwrap());
    for (query, ty) in [
        ("1 + 2", ValueType::Scalar),
        ("1 + x", ValueType::Vector),
        ("('a')", ValueType::String),
        ("x[5m:]", ValueType::Matrix),
        ("scalar(x)", ValueType::Scalar),
    ] {
        assert_eq!(parse(query).unwrap().value_type(), ty, "{query}");
    }
}

/// The tree of `query` written with every operation in parentheses.
fn grouped(expr: &Expr) -> String {
    match expr {
        Expr::Binary(e) => format!("({} {} {})", grouped(&e.lhs), e.op.as_str(), grouped(&e.rhs)),
        Expr::Unary(e) => format!("({}{})", if e.negative { "-" } else { "+" }, grouped(&e.expr)),
        Expr::Paren(e) => grouped(&e.expr),
        other => other.to_string(),
    }
}

#[test]
fn operators_bind_as_prometheus_has_them_bind() {
    let check = |query: &str, expected: &str| assert_eq!(grouped(&parse(query).unwrap()), expected, "{query}");
    check("a or b and c unless d", "(a or ((b and c) unless d))");
    check("a and b == c + d * e ^ f", "(a and (b == (c + (d * (e ^ f)))))");
    check("a ^ b ^ c", "(a ^ (b ^ c))");
    check("a - b - c", "((a - b) - c)");
    check("a * b atan2 c % d / e", "((((a * b) atan2 c) % d) / e)");
    check("a > b < c", "((a > b) < c)");
    check("a + b </ c >/ d", "(((a + b) </ c) >/ d)");
    check("-a ^ b", "(-(a ^ b))");
    check("-a * b", "((-a) * b)");
    check("a ^ -b * c", "((a ^ (-b)) * c)");
    check("a ^ -b ^ c", "(a ^ (-(b ^ c)))");
    check("-1 ^ 2", "(-(1 ^ 2))");
    check("- -1", "1");
    check("a offset -2 ^ b", "(a offset -2s ^ b)");
    check("a offset 2 * b", "(a offset 2s * b)");
    check("a offset (2) * 3", "a offset (2) * 3");
    check("a offset -(2) * 3", "(a offset -(2) * 3)");
    check("-a @ 5", "(-a @ 5.000)");
}

#[test]
fn limits_hold() {
    let check = |query: String, part: &str| {
        let e = parse(&query).unwrap_err();
        assert!(e.message.contains(part), "{e}");
    };
    let depth = "nested deeper than the limit of 1000 levels";
    check("(".repeat(100_000), depth);
    check("-".repeat(100_000) + "a", depth);
    check("abs(".repeat(100_000), depth);
    check("sum(".repeat(50_000), depth);
    check("1+".repeat(60_000) + "1", depth);
    check("a^".repeat(60_000) + "a", depth);
    check("a".to_owned() + &"[1m:]".repeat(60_000), depth);
    check("(".repeat(999) + "a" + &")".repeat(999) + "[1m:][1m:]", depth);
    let duration = "duration expression is nested deeper than the limit of 100 levels";
    check(format!("a[{}", "(".repeat(100_000)), duration);
    check(format!("a[{}", "-".repeat(100_000)), duration);
    check(format!("a[1{}]", "+1".repeat(60_000)), duration);
    check(format!("a[1{}]", "^1".repeat(60_000)), duration);
    check(format!("label_join({}'a')", "'a',".repeat(60_000)), "more parts than the limit of 50000");
    check(format!("a{{{}}}", "b='c',".repeat(60_000)), "more parts than the limit of 50000");
    check("a".repeat(MAX_BYTES + 1), "is longer than the limit of 524288");
    check(format!("{{{}}}", "a=~'[a-p][a-p][a-p]',".repeat(200)), "regexes of the query are larger together");
    check(format!("{{{}}}", "a=~'(\\\\pLa){30}',".repeat(60)), "regexes of the query are larger together");
    assert!(parse(&format!("label_join(a, {} 'a')", "'a',".repeat(49_000))).is_ok());
}

/// Trees of the greatest depth can be handled on half of the stack a test thread has.
#[test]
fn the_deepest_trees_fit_into_small_stacks() {
    let levels = MAX_DEPTH - 1;
    let queries = [
        "(".repeat(levels) + "a" + &")".repeat(levels),
        "-".repeat(levels) + "a",
        "abs(".repeat(levels) + "a" + &")".repeat(levels),
        "sum by (x) (".repeat(levels) + "a" + &")".repeat(levels),
        "topk(1,".repeat(levels) + "a" + &")".repeat(levels),
        "a+".repeat(levels) + "a",
        "a or ".repeat(levels) + "a",
        "a^".repeat(levels) + "a",
        "last_over_time(".repeat(levels / 2) + "a" + &"[1m:])".repeat(levels / 2),
    ];
    let work = move || {
        for query in queries {
            let expr = parse(&query).unwrap_or_else(|e| panic!("{e}"));
            let copy = expr.clone();
            assert_eq!(expr, copy);
            drop(expr);
            assert!(copy.prettify(usize::MAX).unwrap().len() >= copy.to_string().len());
            assert!(copy.to_json().len() > query.len());
            assert_eq!(copy.value_type(), ValueType::Vector);
            assert!(copy.selectors().count() > 0);
            assert!(format!("{copy:?}").len() > query.len());
        }
    };
    std::thread::Builder::new().stack_size(1 << 20).spawn(work).unwrap().join().unwrap();
}

fn token_soup() -> impl Strategy<Value = String> {
    let words: &'static [&'static str] = &[
        "(",
        ")",
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "+",
        "-",
        "*",
        "/",
        "%",
        "^",
        "==",
        "!=",
        "<",
        ">=",
        "</",
        "=",
        "=~",
        "!~",
        "@",
        "'a'",
        "\"",
        "`",
        "\\",
        "#",
        "\n",
        "1",
        "5m",
        "0x",
        "1e",
        "..",
        "inf",
        "a",
        "b:c",
        "rate",
        "abs",
        "info",
        "label_join",
        "time",
        "sum",
        "topk",
        "count_values",
        "by",
        "without",
        "on",
        "ignoring",
        "group_left",
        "fill",
        "fill_right",
        "bool",
        "and",
        "or",
        "unless",
        "atan2",
        "offset",
        "smoothed",
        "anchored",
        "start",
        "end",
        "step()",
        "range",
        "min_of(",
        "é",
        "\u{fffd}",
        "[5m]",
        "[1h:]",
        "a{b='c'}",
        "(a)",
        "$",
        "~",
        "!",
    ];
    proptest::collection::vec((proptest::sample::select(words), proptest::sample::select(&["", " ", "\t"][..])), 0..30)
        .prop_map(|words| words.into_iter().flat_map(|(word, blank)| [word, blank]).collect())
}

proptest! {
    #![proptest_config(seeded(2000))]

    #[test]
    fn anything_is_parsed_or_refused(query in prop_oneof![token_soup(), any_query(), ".{0,40}"]) {
        for options in [ParseOptions::ALL, ParseOptions::default()] {
            match parse_expr(&query, &options) {
                Ok(expr) => {
                    for e in expr.descendants() {
                        prop_assert!(query.is_char_boundary(e.span().start) && query.is_char_boundary(e.span().end));
                        prop_assert!(e.span().start < e.span().end);
                    }
                }
                Err(e) => {
                    prop_assert!(e.span.start <= e.span.end && e.span.end <= query.len(), "{:?}", e);
                    prop_assert!(!e.message.is_empty());
                }
            }
        }
        let _ = parse_matchers(&query);
        let _ = crate::series_description::parse_series_description(&query);
    }

    #[test]
    fn damaged_queries_are_parsed_or_refused(query in any_query(), cut in 0..200_usize, more in token_soup()) {
        let at = (0..=cut.min(query.len())).rev().find(|i| query.is_char_boundary(*i)).unwrap_or(0);
        let _ = parse(&query[..at]);
        let _ = parse(&format!("{}{more}{}", &query[..at], &query[at..]));
    }
}

#[test]
fn operators_keep_their_kind() {
    for (text, op) in
        [("</", BinaryOp::TrimUpper), (">/", BinaryOp::TrimLower), ("<", BinaryOp::Lt), ("!=", BinaryOp::Ne)]
    {
        let Expr::Binary(binary) = parse(&format!("a {text} b")).unwrap() else { panic!() };
        assert_eq!(binary.op, op);
    }
}
