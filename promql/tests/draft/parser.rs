use skald_model::{MatchOp, Matcher};
use skald_promql::ast::*;
use skald_promql::functions::function;

#[derive(Debug, Clone, PartialEq)]
enum T {
    Id(String),
    Num(f64, bool),
    Str(String),
    Op(&'static str),
    Eof,
}

pub struct P {
    toks: Vec<(T, usize, usize)>,
    i: usize,
}
type R<X> = Result<X, String>;

const OPS: &[&str] = &[
    "==", "!=", "<=", ">=", "=~", "!~", "</", ">/", "(", ")", "{", "}", "[", "]", ",", "=", "<", ">", "+", "-", "*",
    "/", "%", "^", "@", ":",
];

pub fn parse_duration(s: &str) -> Option<f64> {
    let mut total = 0.0;
    let mut rest = s;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let n: String = rest.chars().take_while(|c| c.is_ascii_digit()).collect();
        if n.is_empty() {
            return None;
        }
        rest = &rest[n.len()..];
        let u: String = rest.chars().take_while(|c| c.is_ascii_alphabetic()).collect();
        let mult = match u.as_str() {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86400.0,
            "w" => 604800.0,
            "y" => 31536000.0,
            _ => return None,
        };
        rest = &rest[u.len()..];
        total += n.parse::<f64>().ok()? * mult;
    }
    Some(total)
}

fn lex(s: &str) -> R<Vec<(T, usize, usize)>> {
    let b = s.as_bytes();
    let mut i = 0;
    let mut out: Vec<(T, usize, usize)> = Vec::new();
    'outer: while i < b.len() {
        let c = b[i] as char;
        if c.is_whitespace() {
            i += 1;
            continue;
        }
        let st = i;
        if c == '#' {
            while i < b.len() && b[i] != b'\n' {
                i += 1;
            }
            continue;
        }
        if c == '"' || c == '\'' || c == '`' {
            i += 1;
            let mut buf: Vec<u8> = Vec::new();
            while i < b.len() && b[i] as char != c {
                if b[i] == b'\\' && c != '`' {
                    i += 1;
                    match b[i] {
                        b'n' => buf.push(b'\n'),
                        b't' => buf.push(b'\t'),
                        b'x' => {
                            buf.push(u8::from_str_radix(&s[i + 1..i + 3], 16).unwrap());
                            i += 2;
                        }
                        x => buf.push(x),
                    }
                    i += 1;
                } else {
                    buf.push(b[i]);
                    i += 1;
                }
            }
            if i >= b.len() {
                return Err("unterminated".into());
            }
            i += 1;
            out.push((T::Str(String::from_utf8_lossy(&buf).into_owned()), st, i));
            continue;
        }
        let prev_at_lt = false;
        let _ = prev_at_lt;
        if c.is_ascii_digit() || (c == '.' && i + 1 < b.len() && b[i + 1].is_ascii_digit()) {
            while i < b.len()
                && (b[i].is_ascii_alphanumeric()
                    || b[i] == b'.'
                    || b[i] == b'_'
                    || ((b[i] == b'-' || b[i] == b'+') && (b[i - 1] | 32) == b'e' && !s[st..i].starts_with("0x")))
            {
                i += 1;
            }
            let t = &s[st..i];
            let clean = t.replace('_', "");
            if let Some(h) = clean.strip_prefix("0x") {
                out.push((T::Num(i64::from_str_radix(h, 16).map_err(|e| e.to_string())? as f64, false), st, i));
                continue;
            }
            if let Ok(v) = clean.parse::<f64>() {
                out.push((T::Num(v, false), st, i));
                continue;
            }
            if let Some(d) = parse_duration(&clean) {
                out.push((T::Num(d, true), st, i));
                continue;
            }
            return Err(format!("bad number {t}"));
        }
        if c.is_ascii_alphabetic()
            || c == '_'
            || (c == ':'
                && !matches!(out.last(), Some((T::Num(..), ..)))
                && i + 1 < b.len()
                && (b[i + 1].is_ascii_alphabetic()))
        {
            while i < b.len() && (b[i].is_ascii_alphanumeric() || b[i] == b'_' || (b[i] == b':')) {
                i += 1;
            }
            out.push((T::Id(s[st..i].to_owned()), st, i));
            continue;
        }
        for op in OPS {
            if s[i..].starts_with(op) {
                i += op.len();
                out.push((T::Op(op), st, i));
                continue 'outer;
            }
        }
        return Err(format!("bad char {c}"));
    }
    out.push((T::Eof, s.len(), s.len()));
    Ok(out)
}

pub fn parse(s: &str) -> R<Expr> {
    let mut p = P { toks: lex(s)?, i: 0 };
    let e = p.expr(0)?;
    if p.peek() != &T::Eof {
        return Err(format!("unexpected {:?}", p.peek()));
    }
    check(&e)?;
    Ok(e)
}

fn check(e: &Expr) -> R<()> {
    match e {
        Expr::Call(c) => {
            for a in &c.args {
                check(a)?;
            }
        }
        Expr::Binary(b) => {
            check(&b.lhs)?;
            check(&b.rhs)?;
        }
        Expr::Paren(p) => check(&p.expr)?,
        Expr::Unary(p) => check(&p.expr)?,
        Expr::Aggregate(a) => check(&a.expr)?,
        Expr::Subquery(q) => check(&q.expr)?,
        _ => {}
    }
    Ok(())
}

fn binop(t: &T) -> Option<(BinaryOp, u8, bool)> {
    use BinaryOp::*;
    Some(match t {
        T::Op("^") => (Pow, 7, true),
        T::Op("*") => (Mul, 5, false),
        T::Op("/") => (Div, 5, false),
        T::Op("%") => (Mod, 5, false),
        T::Op("+") => (Add, 4, false),
        T::Op("-") => (Sub, 4, false),
        T::Op("==") => (Eq, 3, false),
        T::Op("!=") => (Ne, 3, false),
        T::Op("<") => (Lt, 3, false),
        T::Op("<=") => (Le, 3, false),
        T::Op(">") => (Gt, 3, false),
        T::Op(">=") => (Ge, 3, false),
        T::Op("</") => (TrimUpper, 3, false),
        T::Op(">/") => (TrimLower, 3, false),
        T::Id(s) => match s.to_lowercase().as_str() {
            "atan2" => (Atan2, 5, false),
            "and" => (And, 2, false),
            "unless" => (Unless, 2, false),
            "or" => (Or, 1, false),
            _ => return None,
        },
        _ => return None,
    })
}

impl P {
    fn peek(&self) -> &T {
        &self.toks[self.i].0
    }
    fn peek_at(&self, n: usize) -> &T {
        &self.toks[(self.i + n).min(self.toks.len() - 1)].0
    }
    fn start(&self) -> usize {
        self.toks[self.i].1
    }
    fn end(&self) -> usize {
        if self.i == 0 { 0 } else { self.toks[self.i - 1].2 }
    }
    fn next(&mut self) -> T {
        let t = self.toks[self.i].0.clone();
        if self.i + 1 < self.toks.len() {
            self.i += 1;
        }
        t
    }
    fn op(&mut self, o: &str) -> bool {
        if matches!(self.peek(), T::Op(x) if *x == o) {
            self.next();
            true
        } else {
            false
        }
    }
    fn need(&mut self, o: &str) -> R<()> {
        if self.op(o) { Ok(()) } else { Err(format!("expected {o}, got {:?}", self.peek())) }
    }
    fn kw(&mut self, k: &str) -> bool {
        if matches!(self.peek(), T::Id(s) if s.eq_ignore_ascii_case(k)) {
            self.next();
            true
        } else {
            false
        }
    }
    fn is_kw(&self, k: &str) -> bool {
        matches!(self.peek(), T::Id(s) if s.eq_ignore_ascii_case(k))
    }

    fn expr(&mut self, min: u8) -> R<Expr> {
        let st = self.start();
        let mut lhs = if self.op("-") || matches!(self.peek(), T::Op("+")) {
            let neg = self.i > 0 && matches!(self.toks[self.i - 1].0, T::Op("-")) && self.toks[self.i - 1].1 == st;
            if !neg {
                self.next();
            }
            let e = self.expr(6)?;
            let span = Span { start: st, end: self.end() };
            match e {
                Expr::Number(n) if neg => {
                    Expr::Number(NumberLiteral { value: -n.value, is_duration: n.is_duration, span })
                }
                e => Expr::Unary(Unary { negative: neg, expr: Box::new(e), span }),
            }
        } else {
            self.postfix()?
        };
        while let Some((op, prec, right)) = binop(self.peek()) {
            if prec < min {
                break;
            }
            let os = Span { start: self.start(), end: self.toks[self.i].2 };
            self.next();
            let mut return_bool = false;
            if self.kw("bool") {
                return_bool = true;
            }
            let set = matches!(op, BinaryOp::And | BinaryOp::Or | BinaryOp::Unless);
            let mut m = VectorMatching {
                cardinality: if set { Cardinality::ManyToMany } else { Cardinality::OneToOne },
                labels: vec![],
                on: false,
                include: vec![],
                fill_left: None,
                fill_right: None,
            };
            if self.is_kw("on") || self.is_kw("ignoring") {
                m.on = self.kw("on");
                if !m.on {
                    self.kw("ignoring");
                }
                m.labels = self.labels()?;
            }
            if (self.is_kw("group_left") || self.is_kw("group_right")) && !set {
                m.cardinality = if self.kw("group_left") {
                    Cardinality::ManyToOne
                } else {
                    self.kw("group_right");
                    Cardinality::OneToMany
                };
                if matches!(self.peek(), T::Op("(")) {
                    m.include = self.labels()?;
                }
            }
            for (k, l, r) in [
                ("fill", true, true),
                ("fill_left", true, false),
                ("fill_right", false, true),
                ("fill_left", true, false),
            ] {
                if self.is_kw(k) && matches!(self.peek_at(1), T::Op("(")) {
                    self.next();
                    self.next();
                    let neg = self.op("-");
                    if !neg {
                        self.op("+");
                    }
                    let v = match self.next() {
                        T::Num(v, _) => v,
                        T::Id(s) if s.eq_ignore_ascii_case("nan") => f64::NAN,
                        T::Id(_) => f64::INFINITY,
                        t => return Err(format!("fill {t:?}")),
                    };
                    let v = if neg { -v } else { v };
                    self.need(")")?;
                    if l {
                        m.fill_left = Some(v);
                    }
                    if r {
                        m.fill_right = Some(v);
                    }
                }
            }
            let rhs = self.expr(if right { prec } else { prec + 1 })?;
            let both = lhs.value_type() == ValueType::Vector && rhs.value_type() == ValueType::Vector;
            lhs = Expr::Binary(Binary {
                op,
                lhs: Box::new(lhs),
                rhs: Box::new(rhs),
                matching: both.then_some(m),
                return_bool,
                span: Span { start: st, end: self.end() },
                op_span: os,
            });
        }
        Ok(lhs)
    }

    fn labels(&mut self) -> R<Vec<String>> {
        self.need("(")?;
        let mut v = vec![];
        while !self.op(")") {
            match self.next() {
                T::Id(s) | T::Str(s) => v.push(s),
                t => return Err(format!("label {t:?}")),
            }
            self.op(",");
        }
        Ok(v)
    }

    fn postfix(&mut self) -> R<Expr> {
        let st = self.start();
        let mut e = self.primary()?;
        loop {
            if self.op("[") {
                let range = self.duration()?;
                if self.op(":") {
                    let step = if matches!(self.peek(), T::Op("]")) { None } else { Some(self.duration()?) };
                    self.need("]")?;
                    e = Expr::Subquery(Subquery {
                        expr: Box::new(e),
                        range,
                        step,
                        offset: None,
                        at: None,
                        span: Span { start: st, end: self.end() },
                    });
                } else {
                    self.need("]")?;
                    let Expr::Vector(v) = e else { return Err("range on non selector".into()) };
                    e = Expr::Matrix(MatrixSelector { selector: v, range, span: Span { start: st, end: self.end() } });
                }
            } else if self.is_kw("offset") {
                self.next();
                let d = self.offset()?;
                let sp = Span { start: st, end: self.end() };
                match &mut e {
                    Expr::Vector(v) => {
                        v.offset = Some(d);
                        v.span = sp
                    }
                    Expr::Matrix(m) => {
                        m.selector.offset = Some(d);
                        m.span = sp
                    }
                    Expr::Subquery(q) => {
                        q.offset = Some(d);
                        q.span = sp
                    }
                    _ => return Err("offset".into()),
                }
            } else if self.op("@") {
                let neg = self.op("-");
                if !neg {
                    self.op("+");
                }
                let at = match self.next() {
                    T::Num(v, _) => AtModifier::Timestamp(((if neg { -v } else { v }) * 1000.0).round() as i64),
                    T::Id(s) => {
                        self.need("(")?;
                        self.need(")")?;
                        if s == "start" { AtModifier::Start } else { AtModifier::End }
                    }
                    t => return Err(format!("at {t:?}")),
                };
                match &mut e {
                    Expr::Vector(v) => v.at = Some(at),
                    Expr::Matrix(m) => m.selector.at = Some(at),
                    Expr::Subquery(q) => q.at = Some(at),
                    _ => return Err("at".into()),
                }
            } else if self.is_kw("smoothed") || self.is_kw("anchored") {
                let m = if self.kw("smoothed") {
                    EdgeMode::Smoothed
                } else {
                    self.kw("anchored");
                    EdgeMode::Anchored
                };
                match &mut e {
                    Expr::Vector(v) => v.edges = m,
                    Expr::Matrix(x) => x.selector.edges = m,
                    _ => return Err("edges".into()),
                }
            } else {
                return Ok(e);
            }
        }
    }

    fn offset(&mut self) -> R<Duration> {
        let st = self.start();
        let neg = self.op("-");
        if !neg {
            self.op("+");
        }
        let e = self.dprimary()?;
        let e = if neg {
            DurationExpr::Unary { negative: true, expr: Box::new(e), span: Span { start: st, end: self.end() } }
        } else {
            e
        };
        Ok(Duration::Expr(Box::new(e)))
    }
    fn duration(&mut self) -> R<Duration> {
        Ok(Duration::Expr(Box::new(self.dexpr(0)?)))
    }
    fn dexpr(&mut self, min: u8) -> R<DurationExpr> {
        let st = self.start();
        let mut lhs = if self.op("-") {
            DurationExpr::Unary { negative: true, expr: Box::new(self.dexpr(6)?), span: Span::default() }
        } else {
            self.op("+");
            self.dprimary()?
        };
        while let Some((op, prec, right)) = binop(self.peek()) {
            if prec < min {
                break;
            }
            self.next();
            let rhs = self.dexpr(if right { prec } else { prec + 1 })?;
            lhs = DurationExpr::Binary {
                op,
                lhs: Box::new(lhs),
                rhs: Box::new(rhs),
                span: Span { start: st, end: self.end() },
            };
        }
        Ok(lhs)
    }
    fn dprimary(&mut self) -> R<DurationExpr> {
        let span = Span { start: self.start(), end: self.start() };
        Ok(match self.next() {
            T::Num(v, d) => DurationExpr::Number { seconds: v, is_duration: d, span },
            T::Op("(") => {
                let e = self.dexpr(0)?;
                self.need(")")?;
                DurationExpr::Paren(Box::new(e), span)
            }
            T::Id(s) => {
                self.need("(")?;
                match s.to_lowercase().as_str() {
                    "step" => {
                        self.need(")")?;
                        DurationExpr::Step(span)
                    }
                    "range" => {
                        self.need(")")?;
                        DurationExpr::Range(span)
                    }
                    m => {
                        let a = self.dexpr(0)?;
                        self.need(",")?;
                        let b = self.dexpr(0)?;
                        self.need(")")?;
                        DurationExpr::MinMax { max: m == "max_of", lhs: Box::new(a), rhs: Box::new(b), span }
                    }
                }
            }
            t => return Err(format!("duration {t:?}")),
        })
    }

    fn matchers(&mut self, ms: &mut Vec<Matcher>) -> R<()> {
        self.need("{")?;
        while !self.op("}") {
            let n = match self.next() {
                T::Id(s) => s,
                T::Str(s) => {
                    if matches!(self.peek(), T::Op("," | "}")) {
                        ms.push(Matcher::equal("__name__", s));
                        self.op(",");
                        continue;
                    }
                    s
                }
                t => return Err(format!("matcher {t:?}")),
            };
            let op = match self.next() {
                T::Op("=") => MatchOp::Equal,
                T::Op("!=") => MatchOp::NotEqual,
                T::Op("=~") => MatchOp::Regex,
                T::Op("!~") => MatchOp::NotRegex,
                t => return Err(format!("matchop {t:?}")),
            };
            let T::Str(v) = self.next() else { return Err("matcher value".into()) };
            ms.push(Matcher::new(op, n, v).map_err(|e| e.to_string())?);
            self.op(",");
        }
        Ok(())
    }

    fn primary(&mut self) -> R<Expr> {
        let st = self.start();
        match self.peek().clone() {
            T::Num(value, is_duration) => {
                self.next();
                Ok(Expr::Number(NumberLiteral { value, is_duration, span: Span { start: st, end: self.end() } }))
            }
            T::Str(value) => {
                self.next();
                Ok(Expr::String(StringLiteral { value, span: Span { start: st, end: self.end() } }))
            }
            T::Op("(") => {
                self.next();
                let e = self.expr(0)?;
                self.need(")")?;
                Ok(Expr::Paren(Paren { expr: Box::new(e), span: Span { start: st, end: self.end() } }))
            }
            T::Op("{") => self.selector(None),
            T::Id(s) => {
                let l = s.to_lowercase();
                if (l == "inf" || l == "nan") && !matches!(self.peek_at(1), T::Op("{")) {
                    self.next();
                    return Ok(Expr::Number(NumberLiteral {
                        value: if l == "inf" { f64::INFINITY } else { f64::NAN },
                        is_duration: false,
                        span: Span { start: st, end: self.end() },
                    }));
                }
                let agg = agg(&l);
                let followed = matches!(self.peek_at(1), T::Op("("))
                    || matches!(self.peek_at(1), T::Id(k) if k.eq_ignore_ascii_case("by") || k.eq_ignore_ascii_case("without"));
                if let (Some(op), true) = (agg, followed) {
                    self.next();
                    let (mut grouping, mut without) = (vec![], false);
                    let mut clause = |p: &mut P| -> R<()> {
                        if p.is_kw("by") || p.is_kw("without") {
                            without = p.is_kw("without");
                            p.next();
                            grouping = p.labels()?;
                        }
                        Ok(())
                    };
                    clause(self)?;
                    self.need("(")?;
                    let mut args = vec![self.expr(0)?];
                    while self.op(",") {
                        args.push(self.expr(0)?);
                    }
                    self.need(")")?;
                    clause(self)?;
                    let expr = Box::new(args.pop().unwrap());
                    let param = args.pop().map(Box::new);
                    return Ok(Expr::Aggregate(Aggregate {
                        op,
                        expr,
                        param,
                        grouping,
                        without,
                        span: Span { start: st, end: self.end() },
                    }));
                }
                if matches!(self.peek_at(1), T::Op("(")) {
                    let f = function(&l).ok_or(format!("unknown function with name {s:?}"))?;
                    self.next();
                    self.next();
                    let mut args = vec![];
                    while !self.op(")") {
                        args.push(self.expr(0)?);
                        self.op(",");
                    }
                    return Ok(Expr::Call(Call { function: f, args, span: Span { start: st, end: self.end() } }));
                }
                self.next();
                self.selector(Some((s, st)))
            }
            t => Err(format!("unexpected {t:?}")),
        }
    }
    fn selector(&mut self, name: Option<(String, usize)>) -> R<Expr> {
        let st = name.as_ref().map_or(self.start(), |n| n.1);
        let mut ms = vec![];
        if matches!(self.peek(), T::Op("{")) {
            self.matchers(&mut ms)?;
        }
        if let Some((n, _)) = &name {
            ms.push(Matcher::equal("__name__", n.clone()));
        }
        Ok(Expr::Vector(VectorSelector {
            name: name.map(|n| n.0),
            matchers: ms,
            offset: None,
            at: None,
            edges: EdgeMode::Plain,
            span: Span { start: st, end: self.end() },
        }))
    }
}
fn agg(s: &str) -> Option<AggregateOp> {
    use AggregateOp::*;
    Some(match s {
        "sum" => Sum,
        "avg" => Avg,
        "min" => Min,
        "max" => Max,
        "count" => Count,
        "group" => Group,
        "stddev" => Stddev,
        "stdvar" => Stdvar,
        "quantile" => Quantile,
        "topk" => Topk,
        "bottomk" => Bottomk,
        "count_values" => CountValues,
        "limitk" => Limitk,
        "limit_ratio" => LimitRatio,
        _ => return None,
    })
}
