#![allow(warnings, clippy::all)]
mod parser;
use parser::{parse, parse_duration};
use skald_model::*;
use skald_promql::eval::*;
use skald_promql::testing::{MemStorage, block_on};
use std::collections::BTreeMap;
use std::sync::Arc;

#[derive(Clone, Debug)]
enum V {
    F(f64),
    H(Arc<FloatHistogram>, bool),
    None,
    Stale,
}

fn dur(s: &str) -> i64 {
    let neg = s.starts_with('-');
    let t = s.trim_start_matches('-');
    let v = if t == "0" { 0.0 } else { parse_duration(t).unwrap_or_else(|| t.parse().unwrap()) };
    let ms = (v * 1000.0).round() as i64;
    if neg { -ms } else { ms }
}

fn num(s: &str) -> Option<f64> {
    let (neg, t) = match s.strip_prefix('-') {
        Some(t) => (true, t),
        None => (false, s.strip_prefix('+').unwrap_or(s)),
    };
    let l = t.to_lowercase();
    let v = if l == "inf" {
        f64::INFINITY
    } else if l == "nan" {
        f64::NAN
    } else if let Some(h) = l.strip_prefix("0x") {
        i64::from_str_radix(h, 16).ok()? as f64
    } else {
        t.parse().ok()?
    };
    Some(if neg { -v } else { v })
}

fn hist(s: &str) -> (FloatHistogram, bool) {
    let mut h = FloatHistogram::default();
    let mut hinted = false;
    let (mut off, mut noff) = (0, 0);
    let mut rest = s.trim();
    while !rest.is_empty() {
        let c = rest.find(':').unwrap();
        let k = rest[..c].trim();
        let mut v = rest[c + 1..].trim_start();
        let val;
        if v.starts_with('[') {
            let e = v.find(']').unwrap();
            val = &v[1..e];
            v = &v[e + 1..];
        } else {
            let e = v.find(char::is_whitespace).unwrap_or(v.len());
            val = &v[..e];
            v = &v[e..];
        }
        rest = v.trim_start();
        let list = || -> Vec<f64> { val.split_whitespace().map(|x| num(x).unwrap()).collect() };
        match k {
            "schema" => h.schema = val.parse().unwrap(),
            "sum" => h.sum = num(val).unwrap(),
            "count" => h.count = num(val).unwrap(),
            "z_bucket" => h.zero_count = num(val).unwrap(),
            "z_bucket_w" => h.zero_threshold = num(val).unwrap(),
            "buckets" => h.positive_buckets = list(),
            "n_buckets" => h.negative_buckets = list(),
            "offset" => off = val.parse().unwrap(),
            "n_offset" => noff = val.parse().unwrap(),
            "custom_values" => h.custom_values = list().into(),
            "counter_reset_hint" => {
                hinted = true;
                h.reset_hint = match val {
                    "reset" => ResetHint::Reset,
                    "not_reset" => ResetHint::NotReset,
                    "gauge" => ResetHint::Gauge,
                    _ => ResetHint::Unknown,
                }
            }
            k => panic!("prop {k}"),
        }
    }
    if !h.positive_buckets.is_empty() {
        h.positive_spans = vec![Span { offset: off, length: h.positive_buckets.len() as u32 }];
    }
    if !h.negative_buckets.is_empty() {
        h.negative_spans = vec![Span { offset: noff, length: h.negative_buckets.len() as u32 }];
    }
    (h, hinted)
}

fn map(h: &FloatHistogram) -> (BTreeMap<i32, f64>, BTreeMap<i32, f64>) {
    let m = |spans: &[Span], b: &[f64]| {
        let mut o = BTreeMap::new();
        let mut i = 0;
        let mut n = 0;
        for s in spans {
            i += s.offset;
            for _ in 0..s.length {
                if b[n] != 0.0 {
                    o.insert(i, b[n]);
                }
                i += 1;
                n += 1;
            }
        }
        o
    };
    (m(&h.positive_spans, &h.positive_buckets), m(&h.negative_spans, &h.negative_buckets))
}
fn hadd(a: &FloatHistogram, b: &FloatHistogram, f: f64) -> FloatHistogram {
    let (pa, na) = map(a);
    let (pb, nb) = map(b);
    let d = b.schema - a.schema;
    let red = |m: BTreeMap<i32, f64>| {
        let mut o = BTreeMap::new();
        for (i, c) in m {
            let j = if d > 0 && a.schema != -53 { ((i - 1) >> d) + 1 } else { i };
            *o.entry(j).or_insert(0.0) += c;
        }
        o
    };
    let add = |mut x: BTreeMap<i32, f64>, y: BTreeMap<i32, f64>| {
        for (i, c) in y {
            *x.entry(i).or_insert(0.0) += c * f;
        }
        x
    };
    let p = add(pa, red(pb));
    let n = add(na, red(nb));
    let lay = |m: BTreeMap<i32, f64>| {
        let mut s: Vec<Span> = vec![];
        let mut next = 0;
        let mut v = vec![];
        for (i, c) in m {
            if !s.is_empty() && i == next {
                s.last_mut().unwrap().length += 1;
            } else {
                s.push(Span { offset: i - next, length: 1 });
            }
            next = i + 1;
            v.push(c);
        }
        (s, v)
    };
    let (ps, pbk) = lay(p);
    let (ns, nbk) = lay(n);
    FloatHistogram {
        count: a.count + f * b.count,
        sum: a.sum + f * b.sum,
        zero_count: a.zero_count + f * b.zero_count,
        positive_spans: ps,
        positive_buckets: pbk,
        negative_spans: ns,
        negative_buckets: nbk,
        ..a.clone()
    }
}

fn points(s: &str) -> Vec<V> {
    let mut toks = vec![];
    let mut cur = String::new();
    let mut depth = 0;
    for ch in s.chars() {
        if ch == '{' {
            depth += 1
        }
        if ch == '}' {
            depth -= 1
        }
        if ch.is_whitespace() && depth == 0 {
            if !cur.is_empty() {
                toks.push(std::mem::take(&mut cur));
            }
        } else {
            cur.push(ch)
        }
    }
    if !cur.is_empty() {
        toks.push(cur)
    }
    let mut out = vec![];
    for t in toks {
        if t == "_" {
            out.push(V::None);
            continue;
        }
        if let Some(n) = t.strip_prefix("_x") {
            for _ in 0..n.parse::<usize>().unwrap() {
                out.push(V::None)
            }
            continue;
        }
        if t == "stale" {
            out.push(V::Stale);
            continue;
        }
        if t.starts_with("{{") {
            let e = t.find("}}").unwrap();
            let (h, hinted) = hist(&t[2..e]);
            let rest = &t[e + 2..];
            if rest.is_empty() {
                out.push(V::H(Arc::new(h), hinted));
                continue;
            }
            if let Some(n) = rest.strip_prefix('x') {
                for _ in 0..=n.parse::<usize>().unwrap() {
                    out.push(V::H(Arc::new(h.clone()), hinted))
                }
                continue;
            }
            let f = if rest.starts_with('+') { 1.0 } else { -1.0 };
            let e2 = rest.find("}}").unwrap();
            let (d, _) = hist(&rest[3..e2]);
            let n: usize = rest[e2 + 3..].parse().unwrap();
            let mut a = h;
            out.push(V::H(Arc::new(a.clone()), hinted));
            for _ in 0..n {
                a = hadd(&a, &d, f);
                out.push(V::H(Arc::new(a.clone()), hinted));
            }
            continue;
        }
        let rep = t.strip_prefix("0x").is_some_and(|r| r.chars().all(|c| c.is_ascii_digit()));
        if let (Some(v), false) = (num(&t), rep) {
            out.push(V::F(v));
            continue;
        }
        let x = t.rfind('x').unwrap();
        let n: usize = t[x + 1..].parse().unwrap();
        let body = &t[..x];
        if let Some(v) = num(body) {
            for _ in 0..=n {
                out.push(V::F(v))
            }
            continue;
        }
        let mut split = None;
        for (i, c) in body.char_indices().skip(1) {
            if (c == '+' || c == '-') && !body[..i].ends_with(['e', 'E']) {
                if num(&body[..i]).is_some() && num(&body[i..]).is_some() {
                    split = Some(i);
                }
            }
        }
        let i = split.unwrap_or_else(|| panic!("point {t}"));
        let (mut a, d) = (num(&body[..i]).unwrap(), num(&body[i..]).unwrap());
        for k in 0..=n {
            out.push(V::F(a));
            let _ = k;
            a += d;
        }
    }
    out
}

fn series(line: &str) -> (Labels, String) {
    let line = line.trim();
    let mut pairs: Vec<(String, String)> = vec![];
    let rest;
    let brace = line.find('{');
    let space = line.find(char::is_whitespace).unwrap_or(line.len());
    let name_end = brace.map_or(space, |b| b.min(space));
    if name_end > 0 {
        pairs.push(("__name__".into(), line[..name_end].to_owned()));
    }
    if brace.is_some_and(|b| b <= space) || (brace == Some(space + 0)) {
        let b = brace.unwrap();
        let bytes = line.as_bytes();
        let mut i = b + 1;
        let mut inq = false;
        while inq || bytes[i] != b'}' {
            if bytes[i] == b'"' {
                inq = !inq
            }
            if inq && bytes[i] == b'\\' {
                i += 1
            }
            i += 1;
        }
        let inner = &line[b + 1..i];
        let mut s = inner.trim();
        while !s.is_empty() {
            let (key, after) = if s.starts_with('"') {
                let e = s[1..].find('"').unwrap() + 1;
                (s[1..e].to_owned(), s[e + 1..].trim_start())
            } else {
                let e = s.find('=').unwrap();
                (s[..e].trim().to_owned(), &s[e..])
            };
            if let Some(v) = after.strip_prefix('=') {
                let v = v.trim_start();
                let q = &v[1..];
                let e = q.find('"').unwrap();
                pairs.push((key, q[..e].to_owned()));
                s = q[e + 1..].trim_start().trim_start_matches(',').trim_start();
            } else {
                pairs.push(("__name__".into(), key));
                s = after.trim_start_matches(',').trim_start();
            }
        }
        rest = &line[i + 1..];
    } else {
        rest = &line[space..];
    }
    (Labels::from_pairs(pairs), rest.trim().to_owned())
}

fn load(store: &mut MemStorage, step: i64, lines: &[&str], nhcb: bool) {
    let mut all: BTreeMap<Labels, Vec<V>> = BTreeMap::new();
    let mut skip = false;
    for l in lines {
        if skip {
            skip = false;
        }
        let first = l.trim_start();
        let head_end = first.find('}').map_or(first.find(char::is_whitespace).unwrap_or(first.len()), |b| {
            if first.find(char::is_whitespace).unwrap_or(first.len()) < first.find('{').unwrap_or(usize::MAX) {
                first.find(char::is_whitespace).unwrap()
            } else {
                b + 1
            }
        });
        if first[head_end..].starts_with("@st") || first[..head_end].ends_with("@st") {
            continue;
        }
        let (labels, rest) = series(l);
        all.insert(labels, points(&rest));
    }
    if nhcb {
        let mut groups: BTreeMap<Labels, BTreeMap<i64, (Vec<(f64, f64)>, Option<f64>, Option<f64>)>> = BTreeMap::new();
        for (l, vs) in &all {
            let n = l.metric_name().unwrap_or("");
            let (base, kind) = if let Some(b) = n.strip_suffix("_bucket") {
                (b, 0)
            } else if let Some(b) = n.strip_suffix("_count") {
                (b, 1)
            } else if let Some(b) = n.strip_suffix("_sum") {
                (b, 2)
            } else {
                continue;
            };
            let key = LabelsBuilder::new(l).set("__name__", base).remove("le").build();
            for (i, v) in vs.iter().enumerate() {
                if let V::F(v) = v {
                    let e = groups.entry(key.clone()).or_default().entry(i as i64).or_default();
                    match kind {
                        0 => e.0.push((num(l.get("le").unwrap()).unwrap(), *v)),
                        1 => e.1 = Some(*v),
                        _ => e.2 = Some(*v),
                    }
                }
            }
        }
        for (l, ts) in groups {
            let mut vs = vec![];
            for (i, (mut b, c, s)) in ts {
                while (vs.len() as i64) < i {
                    vs.push(V::None)
                }
                b.sort_by(|a, b| a.0.total_cmp(&b.0));
                let total = c.or(b.last().map(|x| x.1)).unwrap_or(0.0);
                if b.last().is_none_or(|x| x.0 != f64::INFINITY) {
                    b.push((f64::INFINITY, total));
                }
                let mut prev = 0.0;
                let mut counts = vec![];
                for x in &b {
                    counts.push(x.1 - prev);
                    prev = x.1;
                }
                let bounds: Vec<f64> = b[..b.len() - 1].iter().map(|x| x.0).collect();
                vs.push(V::H(
                    Arc::new(FloatHistogram {
                        schema: -53,
                        count: total,
                        sum: s.unwrap_or(0.0),
                        positive_spans: vec![Span { offset: 0, length: counts.len() as u32 }],
                        positive_buckets: counts,
                        custom_values: bounds.into(),
                        ..Default::default()
                    }),
                    false,
                ));
            }
            all.insert(l, vs);
        }
    }
    for (labels, vs) in all {
        let cols = store.series_mut(&labels);
        for (i, v) in vs.into_iter().enumerate() {
            let t = i as i64 * step;
            match v {
                V::F(f) => cols.push_float(t, f),
                V::Stale => {
                    if cols.histogram_timestamps.last() > cols.float_timestamps.last() {
                        cols.push_histogram(t, Arc::new(FloatHistogram { sum: stale_nan(), ..Default::default() }))
                    } else {
                        cols.push_float(t, stale_nan())
                    }
                }
                V::H(h, _) => cols.push_histogram(t, h),
                V::None => {}
            }
        }
        // sort columns and head hints
        let mut f: Vec<(i64, f64)> =
            cols.float_timestamps.iter().copied().zip(cols.float_values.iter().copied()).collect();
        f.sort_by_key(|x| x.0);
        f.dedup_by_key(|x| x.0);
        cols.float_timestamps = f.iter().map(|x| x.0).collect();
        cols.float_values = f.iter().map(|x| x.1).collect();
        let mut prev: Option<(i64, Arc<FloatHistogram>)> = None;
        for (i, h) in cols.histograms.clone().iter().enumerate() {
            let t = cols.histogram_timestamps[i];
            if h.is_stale() {
                prev = None;
                continue;
            }
            let between = prev.as_ref().is_some_and(|(pt, _)| cols.float_timestamps.iter().any(|x| x > pt && *x < t));
            let hint = if h.reset_hint == ResetHint::Gauge {
                ResetHint::Gauge
            } else {
                match &prev {
                    Some((_, p))
                        if !between
                            && p.reset_hint != ResetHint::Gauge
                            && (p.schema == -53) == (h.schema == -53)
                            && (h.schema != -53 || p.custom_values == h.custom_values)
                            && p.schema == h.schema
                            && p.zero_threshold == h.zero_threshold
                            && h.reset_hint != ResetHint::Reset
                            && !fell(h, p) =>
                    {
                        ResetHint::NotReset
                    }
                    _ => ResetHint::Unknown,
                }
            };
            prev = Some((t, h.clone()));
            cols.histograms[i] = Arc::new(FloatHistogram { reset_hint: hint, ..(**h).clone() });
        }
    }
}
fn fell(h: &FloatHistogram, p: &FloatHistogram) -> bool {
    let (hp, hn) = map(h);
    let (pp, pn) = map(p);
    h.count < p.count
        || h.zero_count < p.zero_count
        || pp.iter().any(|(i, c)| hp.get(i).copied().unwrap_or(0.0) < *c)
        || pn.iter().any(|(i, c)| hn.get(i).copied().unwrap_or(0.0) < *c)
}

fn feq(a: f64, b: f64) -> bool {
    if a.is_nan() && b.is_nan() || a == b {
        return true;
    }
    let s = a.abs() + b.abs();
    let d = (a - b).abs();
    if a == 0.0 || b == 0.0 || s < f64::MIN_POSITIVE {
        return d < 1e-6 * f64::MIN_POSITIVE;
    }
    d / s.min(f64::MAX) < 1e-6
}
fn heq(got: &FloatHistogram, want: &FloatHistogram, hinted: bool) -> bool {
    let (gp, gn) = map(got);
    let (wp, wn) = map(want);
    let meq = |a: &BTreeMap<i32, f64>, b: &BTreeMap<i32, f64>| {
        a.len() == b.len() && a.iter().zip(b).all(|(x, y)| x.0 == y.0 && feq(*x.1, *y.1))
    };
    got.schema == want.schema
        && got.zero_threshold == want.zero_threshold
        && feq(got.zero_count, want.zero_count)
        && feq(got.count, want.count)
        && feq(got.sum, want.sum)
        && got.custom_values == want.custom_values
        && meq(&gp, &wp)
        && meq(&gn, &wn)
        && (!hinted || got.reset_hint == want.reset_hint)
}

fn run_query(store: &MemStorage, q: &str, params: EvalParams) -> Result<(Value, Annotations), String> {
    let e = parse(q).map_err(|e| format!("PARSE {e}"))?;
    let ctx = QueryContext::new(None, Some(10_000), Interrupt::default());
    let out = block_on(evaluate(&e, &params, store, &ctx)).map_err(|e| e.to_string())?;
    Ok((out.value, out.annotations))
}

fn flat(v: &Value) -> Vec<(Labels, Vec<(i64, V)>)> {
    match v {
        Value::Vector(e) => e
            .iter()
            .map(|e| {
                (
                    e.labels.clone(),
                    vec![(
                        e.timestamp,
                        match &e.value {
                            SampleValue::Float(f) => V::F(*f),
                            SampleValue::Histogram(h) => V::H(h.clone(), true),
                        },
                    )],
                )
            })
            .collect(),
        Value::Matrix(s) => s
            .iter()
            .map(|s| {
                let mut p: Vec<(i64, V)> = s
                    .samples
                    .float_timestamps
                    .iter()
                    .zip(&s.samples.float_values)
                    .map(|(t, v)| (*t, V::F(*v)))
                    .collect();
                p.extend(
                    s.samples
                        .histogram_timestamps
                        .iter()
                        .zip(&s.samples.histograms)
                        .map(|(t, h)| (*t, V::H(h.clone(), true))),
                );
                p.sort_by_key(|x| x.0);
                (s.labels.clone(), p)
            })
            .collect(),
        Value::Scalar { timestamp, value } => vec![(Labels::empty(), vec![(*timestamp, V::F(*value))])],
        Value::String { .. } => vec![],
    }
}
fn veq(g: &V, w: &V) -> bool {
    match (g, w) {
        (V::F(a), V::F(b)) => feq(*a, *b),
        (V::H(a, _), V::H(b, hint)) => heq(a, b, *hint),
        _ => false,
    }
}

fn check(store: &MemStorage, header: &str, body: &[&str], legacy_fail: bool) -> Result<(), String> {
    let w: Vec<&str> = header.split_whitespace().collect();
    let (params, start, step, query, instant);
    if w[1] == "instant" {
        start = dur(w[3]);
        step = 0;
        instant = true;
        let at = header.find(" at ").unwrap() + 4;
        query = header[at..].trim_start()[w[3].len()..].trim();
        params = EvalParams::instant(start);
    } else {
        start = dur(w[3]);
        let end = dur(w[5]);
        step = dur(w[7]);
        instant = false;
        let at = header.find(" step ").unwrap() + 6;
        query = header[at..].trim_start()[w[7].len()..].trim();
        params = EvalParams::range(start, end, step);
    }
    let params = EvalParams { delayed_name_removal: true, ..params };
    let mut fail: Option<(String, String)> = legacy_fail.then(|| (String::new(), String::new()));
    let mut expects = vec![];
    let mut want = vec![];
    let (mut ordered, mut rv) = (false, None);
    let mut scalar = None;
    for l in body {
        let l = l.trim();
        if let Some(x) = l.strip_prefix("expect ") {
            let x = x.trim();
            if let Some(r) = x.strip_prefix("fail") {
                let r = r.trim();
                fail = Some(match r.split_once(':') {
                    Some((k, m)) => (k.trim().into(), m.trim().into()),
                    None => (String::new(), String::new()),
                });
            } else if x == "ordered" {
                ordered = true
            } else if let Some(r) = x.strip_prefix("range vector from ") {
                let p: Vec<&str> = r.split_whitespace().collect();
                rv = Some((dur(p[0]), dur(p[4])));
            } else if x.starts_with("string") {
                expects.push(x.to_owned());
            } else {
                expects.push(x.to_owned())
            }
        } else if let Some(v) = num(l) {
            scalar = Some(v)
        } else {
            want.push(series(l));
        }
    }
    let res = run_query(store, query, params);
    if let Some((k, m)) = fail {
        return match res {
            Ok(_) => Err("expected failure".into()),
            Err(e) => {
                if k == "msg" && e != m {
                    Err(format!("error {e:?} want {m:?}"))
                } else if k == "regex" && !regex::Regex::new(&m).unwrap().is_match(&e) {
                    Err(format!("error {e:?} want re {m:?}"))
                } else {
                    Ok(())
                }
            }
        };
    }
    let (value, annos) = res.map_err(|e| format!("ERR {e}"))?;
    if instant && std::env::var("EXTRA").is_ok() {
        extra(store, query, start, &value, ordered)?;
    }
    let (warns, infos) = (annos.warnings(query, 100), annos.infos(query, 100));
    for kind in ["warn", "info"] {
        let got = if kind == "warn" { &warns } else { &infos };
        let lines: Vec<&String> = expects.iter().filter(|x| x.starts_with(kind)).collect();
        if expects.iter().any(|x| *x == format!("no_{kind}")) && !got.is_empty() {
            return Err(format!("unexpected {kind}: {got:?}"));
        }
        if lines.is_empty() {
            continue;
        }
        if got.is_empty() {
            return Err(format!("missing {kind}"));
        }
        let matches = |line: &str, g: &str| {
            let r = line[4..].trim();
            match r.split_once(':') {
                None => true,
                Some((k, m)) if k.trim() == "msg" => g == m.trim(),
                Some((_, m)) => regex::Regex::new(m.trim()).unwrap().is_match(g),
            }
        };
        for l in &lines {
            if !got.iter().any(|g| matches(l, g)) {
                return Err(format!("{kind} {l:?} not in {got:?}"));
            }
        }
        if lines.iter().any(|l| l.contains(':')) {
            for g in got {
                if !lines.iter().any(|l| matches(l, g)) {
                    return Err(format!("extra {kind} {g:?}"));
                }
            }
        }
    }
    if let Some(s) = scalar {
        return match value {
            Value::Scalar { value, .. } if feq(value, s) => Ok(()),
            v => Err(format!("got {v:?} want scalar {s}")),
        };
    }
    if let Value::String { .. } = value {
        return Ok(());
    }
    if let Value::Scalar { .. } = value {
        return Err("scalar".into());
    }
    let got = flat(&value);
    let (s0, st) = rv.unwrap_or((start, step));
    let mut exp: Vec<(Labels, Vec<(i64, V)>)> = vec![];
    for (l, p) in &want {
        let pts = points(p);
        let v: Vec<(i64, V)> = pts
            .into_iter()
            .enumerate()
            .filter(|(_, v)| !matches!(v, V::None))
            .map(|(i, v)| (if instant && rv.is_none() { start } else { s0 + i as i64 * st }, v))
            .collect();
        if !v.is_empty() {
            exp.push((l.clone(), v));
        }
    }
    let show = |x: &Vec<(Labels, Vec<(i64, V)>)>| format!("{:?}", x).chars().take(900).collect::<String>();
    if got.len() != exp.len() {
        return Err(format!("got {} series want {}: {} WANT {}", got.len(), exp.len(), show(&got), show(&exp)));
    }
    for (i, (l, v)) in exp.iter().enumerate() {
        let g = if ordered {
            let g = &got[i];
            if g.0 != *l {
                return Err(format!("order {i}: {} want {l}", g.0));
            }
            g
        } else {
            got.iter().find(|g| g.0 == *l).ok_or_else(|| format!("missing {l}: got {}", show(&got)))?
        };
        if g.1.len() != v.len() || !g.1.iter().zip(v).all(|(a, b)| a.0 == b.0 && veq(&a.1, &b.1)) {
            return Err(format!("{l}: got {:?} want {:?}", g.1, v).chars().take(1500).collect());
        }
    }
    if let Value::Matrix(_) = value {
        if !got.windows(2).all(|w| w[0].0 < w[1].0) {
            return Err("unsorted".into());
        }
    }
    Ok(())
}

use skald_promql::ast::*;
fn add_at(e: &mut Expr, at: i64) {
    match e {
        Expr::Aggregate(a) => {
            add_at(&mut a.expr, at);
            if let Some(p) = &mut a.param {
                add_at(p, at)
            }
        }
        Expr::Binary(b) => {
            add_at(&mut b.lhs, at);
            add_at(&mut b.rhs, at)
        }
        Expr::Call(c) => {
            let n = c.args.len();
            for (i, a) in c.args.iter_mut().enumerate() {
                if c.function.name == "info" && i == 1 && n == 2 {
                    continue;
                }
                add_at(a, at)
            }
        }
        Expr::Matrix(m) => {
            m.selector.at.get_or_insert(AtModifier::Timestamp(at));
        }
        Expr::Vector(m) => {
            m.at.get_or_insert(AtModifier::Timestamp(at));
        }
        Expr::Subquery(q) => {
            if q.at.is_none() {
                q.at = Some(AtModifier::Timestamp(at));
            }
        }
        Expr::Paren(p) => add_at(&mut p.expr, at),
        Expr::Unary(p) => add_at(&mut p.expr, at),
        _ => {}
    }
}
fn extra(store: &MemStorage, query: &str, t: i64, value: &Value, ordered: bool) -> Result<(), String> {
    let same = |got: &Value, at: i64, what: &str| -> Result<(), String> {
        let mut a: Vec<(Labels, Vec<V>)> =
            flat(value).into_iter().map(|(l, p)| (l, p.into_iter().map(|x| x.1).collect())).collect();
        let mut b: Vec<(Labels, Vec<V>)> = flat(got)
            .into_iter()
            .map(|(l, p)| {
                (
                    l,
                    p.into_iter()
                        .filter(|x| {
                            matches!(got, Value::Vector(_) | Value::Scalar { .. })
                                || matches!(value, Value::Matrix(_))
                                || x.0 == at
                        })
                        .map(|x| x.1)
                        .collect::<Vec<_>>(),
                )
            })
            .filter(|(_, v)| !v.is_empty())
            .collect();
        a.sort_by(|x, y| x.0.cmp(&y.0));
        b.sort_by(|x, y| x.0.cmp(&y.0));
        let loose = |v: &V| match v {
            V::H(h, _) => V::H(h.clone(), false),
            v => v.clone(),
        };
        if a.len() != b.len()
            || !a.iter().zip(&b).all(|(x, y)| {
                x.0 == y.0 && x.1.len() == y.1.len() && x.1.iter().zip(&y.1).all(|(p, q)| veq(p, &loose(q)))
            })
        {
            return Err(format!("EXTRA {what}: {:?} VS {:?}", a, b).chars().take(800).collect());
        }
        Ok(())
    };
    let has = |l: &[&str]| l.iter().any(|w| query.contains(w));
    let p = EvalParams { delayed_name_removal: true, ..EvalParams::range(t - 60_000, t + 60_000, 60_000) };
    if !ordered
        && !matches!(value, Value::Matrix(_) | Value::String { .. })
        && !has(&["range(", "step(", "start(", "end(", "RANGE(", "STEP("])
    {
        let (v, _) = run_query(store, query, p).map_err(|e| format!("EXTRA range: {e}"))?;
        same(&v, t, "range")?;
    }
    if !has(&[
        "time(",
        "timestamp(",
        "predict_linear(",
        "minute(",
        "hour(",
        "day_",
        "days_",
        "month(",
        "year(",
        "start(",
        "end(",
        "range(",
        "step(",
    ]) {
        let mut e = parse(query)?;
        add_at(&mut e, t);
        for at in if t == 0 { vec![-1000, 0, 1000] } else { vec![-10 * t, 0, t / 5, t, 10 * t] } {
            let params = EvalParams { delayed_name_removal: true, ..EvalParams::instant(at) };
            let ctx = QueryContext::new(None, Some(10_000), Interrupt::default());
            let out = block_on(evaluate(&e, &params, store, &ctx)).map_err(|e| format!("EXTRA at: {e}"))?;
            same(&out.value, at, &format!("@ {t} at {at}"))?;
        }
    }
    Ok(())
}

#[test]
fn run() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/promqltest");
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "test"))
        .collect();
    files.sort();
    let only = std::env::var("ONLY").unwrap_or_default();
    for f in files {
        let name = f.file_name().unwrap().to_str().unwrap().to_owned();
        if !name.contains(&only) {
            continue;
        }
        let text = std::fs::read_to_string(&f).unwrap();
        let lines: Vec<&str> = text
            .lines()
            .map(|l| {
                let t = l.trim();
                if t.starts_with('#') { "" } else { t }
            })
            .collect();
        // comment lines inside a body count as empty lines only if whole body ends; treat comments as absent
        let raw: Vec<&str> = text.lines().collect();
        let mut store = MemStorage::default();
        let (mut ok, mut bad) = (0, vec![]);
        let mut i = 0;
        while i < lines.len() {
            let l = lines[i];
            if l.is_empty() {
                i += 1;
                continue;
            }
            let start = i;
            i += 1;
            let mut body = vec![];
            while l != "clear" && i < lines.len() && (!lines[i].is_empty() || raw[i].trim().starts_with('#')) {
                if !lines[i].is_empty() {
                    body.push(lines[i]);
                }
                i += 1;
            }
            let w = l.split_whitespace().next().unwrap();
            if w == "clear" {
                store.clear();
            } else if w.starts_with("load") {
                let step = dur(l.split_whitespace().nth(1).unwrap());
                load(&mut store, step, &body, w != "load");
            } else if w.starts_with("eval") {
                let r = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    check(&store, l, &body, w == "eval_fail")
                }));
                match r {
                    Ok(Ok(())) => ok += 1,
                    Ok(Err(e)) => bad.push((start + 1, l, e)),
                    Err(_) => bad.push((start + 1, l, "PANIC".into())),
                }
            }
        }
        println!("== {name}: {ok} of {}", ok + bad.len());
        for (n, l, e) in bad {
            println!("  {n}: {l}\n      {e}");
        }
    }
}
