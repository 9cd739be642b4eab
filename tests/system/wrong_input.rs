//! Wrong input of every kind: a clear error with the right code, the process lives, and what was accepted is intact.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::process::{Answer, Skald, answer_of, now_ms};
use crate::sender::{Request, put_field, put_uvarint};

/// Some accepted samples, and the answers they give.
struct Accepted {
    end: i64,
    answer: Value,
}

const CHECK: &str = "sort(sum_over_time(accepted[10m]))";

impl Accepted {
    async fn push(skald: &Skald) -> Accepted {
        let end = now_ms();
        for i in 0..20 {
            let at = end - (19 - i) * 1000;
            let mut request = Request::default();
            for series in ["a", "b", "c"] {
                request = request.series(&[("__name__", "accepted"), ("series", series)], &[(at, i as f64 + 0.5)]);
            }
            let answer = skald.push(request.body()).await.unwrap();
            assert_eq!(answer.status, 200, "{}", answer.body);
        }
        let answer = skald.query(CHECK, end as f64 / 1000.0).await;
        assert_eq!(answer["result"].as_array().map(Vec::len), Some(3), "{answer}");
        Accepted { end, answer }
    }

    /// The process still runs and answers as before.
    async fn check(&self, skald: &mut Skald, after: &str) {
        assert!(skald.process().is_running(), "it ended after {after}: {}", skald.log());
        assert_eq!(skald.query(CHECK, self.end as f64 / 1000.0).await, self.answer, "after {after}");
    }
}

fn compressed(proto: &[u8]) -> Vec<u8> {
    snap::raw::Encoder::new().compress_vec(proto).unwrap()
}

/// A body that begins as snappy of `length` bytes does, and goes on with `rest`.
fn declares(length: u64, rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    put_uvarint(&mut body, length);
    body.extend_from_slice(rest);
    body
}

/// A request of one series of one sample; the label bytes may be anything.
fn one_series(labels: &[(&[u8], &[u8])], at: i64) -> Vec<u8> {
    let mut series = Vec::new();
    for (name, value) in labels {
        let mut label = Vec::new();
        put_field(&mut label, 1, name);
        put_field(&mut label, 2, value);
        put_field(&mut series, 1, &label);
    }
    let mut sample = vec![0x09];
    sample.extend_from_slice(&1_f64.to_le_bytes());
    sample.push(0x10);
    put_uvarint(&mut sample, at as u64);
    put_field(&mut series, 2, &sample);
    let mut request = Vec::new();
    put_field(&mut request, 1, &series);
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_writes_are_refused_and_harm_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut skald = Skald::start(dir.path(), &[]).await;
    let accepted = Accepted::push(&skald).await;
    let now = now_ms();
    let good = one_series(&[(b"__name__", b"good")], now);
    let truncated = {
        let whole = compressed(&good.repeat(50));
        whole[..whole.len() / 2].to_vec()
    };
    let series = |labels: &[(&[u8], &[u8])]| compressed(&one_series(labels, now));
    let long_name = vec![b'n'; 2000];
    let long_value = vec![b'v'; 5000];
    let many: Vec<Vec<u8>> = (0..60).map(|i| format!("l{i:02}").into_bytes()).collect();
    let many: Vec<(&[u8], &[u8])> =
        std::iter::once((&b"__name__"[..], &b"x"[..])).chain(many.iter().map(|n| (n.as_slice(), &b"v"[..]))).collect();
    let absurd_varint = {
        let mut proto = vec![0x0a];
        proto.extend_from_slice(&[0xff; 11]);
        compressed(&proto)
    };
    // A field that says it is longer than the memory.
    let absurd_length = {
        let mut proto = vec![0x0a];
        put_uvarint(&mut proto, u64::MAX >> 1);
        compressed(&proto)
    };
    let mut large_length = good.clone();
    large_length.extend_from_slice(&[0x0a, 0x7f]);
    let cases: Vec<(&str, Vec<u8>, u16, &str)> = vec![
        ("nothing but garbage", b"garbage, not snappy".to_vec(), 400, "malformed-snappy"),
        ("truncated snappy", truncated, 400, "malformed-snappy"),
        ("snappy that declares 4 GiB", declares(u64::from(u32::MAX), b"\x00x"), 413, "size"),
        ("snappy that declares 90 MB", declares(90 << 20, b"\x00x"), 400, "malformed-snappy"),
        ("snappy that declares more than 32 bits", declares(1 << 40, b"\x00x"), 413, "size"),
        ("garbage in snappy", compressed(b"garbage, not protobuf"), 400, "malformed-protobuf"),
        ("an absurd varint", absurd_varint, 400, "malformed-protobuf"),
        ("an absurd length", absurd_length, 400, "malformed-protobuf"),
        ("a length beyond the end", compressed(&large_length), 400, "malformed-protobuf"),
        ("no metric name", series(&[(b"a", b"1")]), 400, "missing-metric-name"),
        ("an invalid metric name", series(&[(b"__name__", b"a-b")]), 400, "metric-name-invalid"),
        ("an invalid label name", series(&[(b"__name__", b"x"), (b"a-b", b"1")]), 400, "label-invalid"),
        ("a label twice", series(&[(b"__name__", b"x"), (b"a", b"1"), (b"a", b"2")]), 400, "duplicate-label-names"),
        ("invalid UTF-8 in a value", series(&[(b"__name__", b"x"), (b"a", b"\xff\xfe")]), 400, "label-value-invalid"),
        ("invalid UTF-8 in a name", series(&[(b"__name__", b"x"), (b"\xc3\x28", b"1")]), 400, "label-invalid"),
        ("invalid UTF-8 in the metric name", series(&[(b"__name__", b"x\xed\xa0\x80")]), 400, "-invalid"),
        ("a long label name", series(&[(b"__name__", b"x"), (&long_name, b"1")]), 400, "label-name-too-long"),
        ("a long label value", series(&[(b"__name__", b"x"), (b"a", &long_value)]), 400, "label-value-too-long"),
        ("too many labels", series(&many), 400, "max-label-names-per-series"),
        (
            "a sample in the far future",
            compressed(&one_series(&[(b"__name__", b"x")], now + 86_400_000)),
            400,
            "future",
        ),
        ("a sample at the end of time", compressed(&one_series(&[(b"__name__", b"x")], i64::MAX)), 400, "future"),
    ];
    for (what, body, status, id) in cases {
        let answer = skald.push(body).await.unwrap_or_else(|e| panic!("{what}: no answer: {e}"));
        assert!(answer.status == status && answer.body.contains(id), "{what}: {answer:?}, expected {status} {id}");
        assert!(answer.body.contains("err-skald-"), "{what}: an answer without an id: {answer:?}");
        accepted.check(&mut skald, what).await;
    }
    // One bad series does not keep out the good ones beside it.
    let mut mixed = one_series(&[(b"__name__", b"mixed"), (b"a", b"\xff")], now);
    mixed.extend(one_series(&[(b"__name__", b"mixed"), (b"a", b"good")], now));
    mixed.extend(one_series(&[(b"__name__", b"mixed"), (b"b", b"1"), (b"b", b"2")], now));
    let answer = skald.push(compressed(&mixed)).await.unwrap();
    assert_eq!(answer.status, 400, "{answer:?}");
    let data = skald.query("mixed", now as f64 / 1000.0).await;
    assert_eq!(data["result"].as_array().map(Vec::len), Some(1), "{data}");
    assert_eq!(data["result"][0]["metric"]["a"], "good");
    // Nothing of the refused ones is there.
    let names = Skald::data(skald.get("/prometheus/api/v1/label/__name__/values", &[]).await);
    assert_eq!(names, serde_json::json!(["accepted", "mixed"]));
    skald.kill();
    skald.start_again().await;
    accepted.check(&mut skald, "a restart").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_headers_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut skald = Skald::start(dir.path(), &[]).await;
    let accepted = Accepted::push(&skald).await;
    let body = compressed(&one_series(&[(b"__name__", b"x")], now_ms()));
    let push = |headers: &[(&str, &[u8])]| {
        let mut request = skald.client().post(skald.url("/api/v1/push")).body(body.clone());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request
    };
    let proto: (&str, &[u8]) = ("Content-Type", b"application/x-protobuf");
    let snappy: (&str, &[u8]) = ("Content-Encoding", b"snappy");
    let tenant = "X-Scope-OrgID";
    let v3: (&str, &[u8]) = ("Content-Type", b"application/x-protobuf;proto=io.prometheus.write.v3.Request");
    let long = [b'x'; 200];
    type Header<'a> = (&'a str, &'a [u8]);
    let cases: Vec<(&str, Vec<Header>, u16)> = vec![
        ("JSON", vec![("Content-Type", b"application/json"), snappy], 415),
        ("remote write 3.0", vec![v3, snappy], 415),
        ("gzip", vec![proto, ("Content-Encoding", b"gzip")], 415),
        ("zstd", vec![proto, ("Content-Encoding", b"zstd")], 415),
        ("a path for a tenant", vec![proto, snappy, (tenant, b"../other")], 400),
        ("a tenant of two", vec![proto, snappy, (tenant, b"a|b")], 400),
        ("an empty tenant", vec![proto, snappy, (tenant, b"")], 400),
        ("a tenant that is not ASCII", vec![proto, snappy, (tenant, "ä".as_bytes())], 400),
        ("a tenant that is not UTF-8", vec![proto, snappy, (tenant, b"\xff")], 400),
        ("a long tenant", vec![proto, snappy, (tenant, &long)], 400),
        ("two tenants", vec![proto, snappy, (tenant, b"a"), (tenant, b"b")], 400),
        ("none but the right ones", vec![proto, snappy], 200),
    ];
    for (what, headers, status) in cases {
        let answer = answer_of(push(&headers)).await.unwrap();
        assert_eq!(answer.status, status, "{what}: {answer:?}");
        if headers.iter().any(|(name, _)| *name == tenant) {
            let mut request = skald.client().get(skald.url("/prometheus/api/v1/query?query=accepted"));
            for (name, value) in headers.iter().filter(|(name, _)| *name == tenant) {
                request = request.header(*name, *value);
            }
            let answer = answer_of(request).await.unwrap();
            assert_eq!((answer.status, answer.json()["errorType"].as_str()), (400, Some("bad_data")), "{what}");
        }
    }
    let get = skald.get("/api/v1/push", &[]).await;
    assert_eq!(get.status, 405, "{get:?}");
    accepted.check(&mut skald, "wrong headers").await;
}

/// By how much the greatest memory use of the process may grow.
const MEMORY_KIB: u64 = 100 << 10;

#[tokio::test(flavor = "multi_thread")]
async fn bombs_cost_no_memory() {
    let dir = tempfile::tempdir().unwrap();
    let mut skald = Skald::start(dir.path(), &[]).await;
    let accepted = Accepted::push(&skald).await;
    let empty_series = [0x0a, 0x00].repeat(4 << 20);
    let empty_labels = {
        let mut series = Vec::new();
        put_field(&mut series, 1, &[0x0a, 0x00].repeat(1 << 20));
        series
    };
    let empty_samples = {
        let mut series = Vec::new();
        put_field(&mut series, 1, &[&b"\x0a\x0d\x0a\x08__name__\x12\x01x"[..], &[0x12, 0x00].repeat(1 << 20)].concat());
        series
    };
    let empty_metadata = [0x1a, 0x00].repeat(4 << 20);
    let bombs: [(&str, Vec<u8>); 8] = [
        ("8 MB of empty series", compressed(&empty_series)),
        ("2 MB of empty labels", compressed(&empty_labels)),
        ("2 MB of empty samples", compressed(&empty_samples)),
        ("8 MB of empty metadata", compressed(&empty_metadata)),
        ("4 GiB declared", declares(u64::from(u32::MAX), &[0; 100])),
        ("99 MiB declared", declares(99 << 20, &[0; 100])),
        ("1 GiB declared", declares(1 << 30, &[0; 100])),
        ("200 MB of zeros", compressed(&vec![0; 200 << 20])),
    ];
    for (what, body) in bombs {
        let before = skald.process().memory_kib("VmHWM");
        let begun = Instant::now();
        let answer = skald.push(body).await.unwrap();
        let grown = skald.process().memory_kib("VmHWM") - before;
        println!("{what}: {} {} KiB more, {:?}", answer.status, grown, begun.elapsed());
        let expected = if what.contains("empty") { vec![200, 400, 413] } else { vec![400, 413] };
        assert!(expected.contains(&answer.status), "{what}: {answer:?}");
        assert!(grown < MEMORY_KIB, "{what}: {grown} KiB");
        accepted.check(&mut skald, what).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn oversize_bodies_are_413() {
    let dir = tempfile::tempdir().unwrap();
    let mut skald = Skald::start(dir.path(), &["--distributor.max-recv-msg-size=1MiB"]).await;
    let accepted = Accepted::push(&skald).await;
    // Told by its header, told only by its bytes, and told by what it decompresses to.
    let noise: Vec<u8> = (0..3_u64 << 20).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
    let with_header = skald.push(noise.clone()).await.unwrap();
    assert_eq!(with_header.status, 413, "{with_header:?}");
    let chunks: Vec<Result<Vec<u8>, std::io::Error>> = noise.chunks(10_000).map(|c| Ok(c.to_vec())).collect();
    let streamed = skald.push_request(Vec::new()).body(reqwest::Body::wrap_stream(futures::stream::iter(chunks)));
    let streamed = answer_of(streamed).await.unwrap();
    assert_eq!(streamed.status, 413, "{streamed:?}");
    let decompressed = skald.push(compressed(&vec![0; 2 << 20])).await.unwrap();
    assert_eq!(decompressed.status, 413, "{decompressed:?}");
    let form = format!("query={}", "1%2b".repeat(5 << 20));
    let request = skald.client().post(skald.url("/prometheus/api/v1/query")).body(form);
    let answer = answer_of(request.header("Content-Type", "application/x-www-form-urlencoded")).await.unwrap();
    assert_eq!(answer.status, 413, "{}", answer.body);
    accepted.check(&mut skald, "oversize bodies").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sample_of_the_far_future_blocks_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let skald = Skald::start(dir.path(), &[]).await;
    let now = now_ms();
    let push = async |at: i64, value: f64| {
        skald.push(Request::default().series(&[("__name__", "x")], &[(at, value)]).body()).await.unwrap()
    };
    assert_eq!(push(now - 60_000, 1.0).await.status, 200);
    for future in [now + 3_600_000, now + 365 * 86_400_000, 4_102_444_800_000, i64::MAX] {
        assert_eq!(push(future, -1.0).await.status, 400, "{future}");
    }
    // Within the clock skew that is forgiven: it is taken, and the present is still taken after it.
    assert_eq!(push(now + 300_000, 2.0).await.status, 200);
    for i in 0..5 {
        let answer = push(now - 50_000 + i * 1000, 3.0).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    let data = skald.query("count_over_time(x[10m])", now as f64 / 1000.0 + 301.0).await;
    assert_eq!(data["result"][0]["value"][1], "7", "{data}");
    // Another series, too.
    let other = Request::default().series(&[("__name__", "y")], &[(now, 1.0)]).body();
    assert_eq!(skald.push(other).await.unwrap().status, 200);
}

fn nested(depth: usize, inner: &str) -> String {
    format!("{}{inner}{}", "(".repeat(depth), ")".repeat(depth))
}

#[tokio::test(flavor = "multi_thread")]
async fn monstrous_queries_are_answered_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut skald = Skald::start(dir.path(), &[]).await;
    let accepted = Accepted::push(&skald).await;
    let sum = |terms: usize| vec!["accepted"; terms].join("+");
    let queries = [
        ("100,000 nested parentheses", nested(100_000, "accepted")),
        ("100,000 open parentheses", "(".repeat(100_000)),
        ("100,000 nested calls", format!("{}accepted{}", "abs(".repeat(100_000), ")".repeat(100_000))),
        ("100,000 signs", format!("{}1", "-".repeat(100_000))),
        ("a sum of 60,000 terms", sum(60_000)),
        ("a power of 60,000 terms", vec!["accepted"; 60_000].join("^")),
        (
            "60,000 nested subqueries",
            format!("{}accepted{}", "max_over_time(".repeat(60_000), "[1m:1s])".repeat(60_000)),
        ),
        ("a string that does not end", format!("{{a=\"{}", "x".repeat(200_000))),
    ];
    for (what, query) in &queries {
        for path in ["query", "format_query", "parse_query"] {
            let begun = Instant::now();
            let answer = skald.post_form(&format!("/prometheus/api/v1/{path}"), &[("query", query)]).await;
            let took = begun.elapsed();
            println!("{what}, {path}: {} in {took:?}", answer.status);
            let head: String = answer.body.chars().take(300).collect();
            assert_eq!(answer.status, 400, "{what}, {path}: {head}");
            assert_eq!(answer.json()["errorType"], "bad_data", "{what}: {head}");
            assert!(
                answer.body.len() < 5000,
                "{what}: the query is repeated in an answer of {} bytes",
                answer.body.len()
            );
            assert!(took < Duration::from_secs(2), "{what}: {took:?}");
        }
        accepted.check(&mut skald, what).await;
    }
    // What people do write.
    let data = skald.query(&nested(50, "accepted"), accepted.end as f64 / 1000.0).await;
    assert_eq!(data["result"].as_array().map(Vec::len), Some(3));
    let long = [("query", sum(500))];
    let answer = skald.post_form("/prometheus/api/v1/query", &long.each_ref().map(|(k, v)| (*k, v.as_str()))).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_query_parameters_are_400() {
    let dir = tempfile::tempdir().unwrap();
    let mut skald = Skald::start(dir.path(), &[]).await;
    let accepted = Accepted::push(&skald).await;
    let check = async |path: &str, params: &[(&str, &str)], status: u16, part: &str| {
        let answers: [Answer; 2] = [
            skald.get(&format!("/prometheus/api/v1/{path}"), params).await,
            skald.post_form(&format!("/prometheus/api/v1/{path}"), params).await,
        ];
        for answer in answers {
            let json = answer.json();
            let error_type = if status == 400 { "bad_data" } else { "execution" };
            assert_eq!((answer.status, json["errorType"].as_str()), (status, Some(error_type)), "{params:?}: {json}");
            let error = json["error"].as_str().unwrap_or_default();
            assert!(error.contains(part), "{path} {params:?}: {error:?} does not contain {part:?}");
        }
    };
    let q = ("query", "accepted");
    for time in ["yesterday", "1e400", "NaN", "-Inf", "2024-13-01T00:00:00Z", "99999999999999999999", "1 2"] {
        check("query", &[q, ("time", time)], 400, "invalid parameter \"time\"").await;
        check("query_range", &[q, ("start", time), ("end", "1"), ("step", "1")], 400, "invalid parameter \"start\"")
            .await;
    }
    check("query", &[], 400, "").await;
    check("query", &[q, ("timeout", "soon")], 400, "invalid parameter \"timeout\"").await;
    check("query", &[q, ("limit", "-1")], 400, "limit").await;
    for broken in ["accepted{", "sum by (", "rate(accepted)", "accepted[5m", "{}", "{a=~\"[\"}", "1 +", "foo(", "\"a"] {
        check("query", &[("query", broken)], 400, "invalid parameter \"query\"").await;
        check("query_range", &[("query", broken), ("start", "0"), ("end", "9"), ("step", "1")], 400, "\"query\"").await;
    }
    let range = async |start: &str, end: &str, step: &str, part: &str| {
        check("query_range", &[q, ("start", start), ("end", end), ("step", step)], 400, part).await;
    };
    range("10", "9", "1", "end timestamp must not be before start time").await;
    range("0", "9", "0", "zero or negative query resolution step").await;
    range("0", "9", "-1", "zero or negative query resolution step").await;
    range("0", "11001", "1", "exceeded maximum resolution of 11,000 points per timeseries").await;
    range("0", "9223372036", "0.001", "exceeded maximum resolution").await;
    range("", "9", "1", "invalid parameter \"start\"").await;
    range("0", "9", "", "invalid parameter \"step\"").await;
    check("query", &[("query", "accepted + on () accepted")], 422, "").await;
    check("query", &[("query", "label_replace(accepted, \"a\", \"$1\", \"b\", \"(\")")], 422, "invalid regular").await;
    let no_match = skald.get("/prometheus/api/v1/series", &[]).await;
    assert_eq!((no_match.status, no_match.json()["error"].as_str()), (400, Some("no match[] parameter provided")));
    let unknown = skald.get("/prometheus/api/v1/nothing", &[]).await;
    assert_eq!(unknown.status, 404, "{unknown:?}");
    accepted.check(&mut skald, "wrong parameters").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_beyond_its_budget_fails_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut skald =
        Skald::start(dir.path(), &["--querier.max-samples=1000", "--querier.query-memory-limit=1MiB"]).await;
    let accepted = Accepted::push(&skald).await;
    let end = (accepted.end as f64 / 1000.0).to_string();
    let start = (accepted.end as f64 / 1000.0 - 500.0).to_string();
    let query = "max_over_time(accepted[10m:1ms])";
    let instant = skald.get("/prometheus/api/v1/query", &[("query", query), ("time", &end)]).await;
    let params = [("query", query), ("start", &start), ("end", &end), ("step", "1")];
    let range = skald.get("/prometheus/api/v1/query_range", &params).await;
    for answer in [instant, range] {
        assert_eq!((answer.status, answer.json()["errorType"].as_str()), (422, Some("execution")), "{}", answer.body);
    }
    accepted.check(&mut skald, "a query beyond its budget").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_start_on_the_same_data_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut skald = Skald::start(dir.path(), &[]).await;
    let accepted = Accepted::push(&skald).await;
    let mut second = Skald::new(dir.path(), &[]);
    second.spawn();
    assert_eq!(second.process().wait(), Some(1));
    let expected = format!("is in use by process {}", skald.process().pid());
    assert!(second.log().contains(&expected), "{}", second.log());
    accepted.check(&mut skald, "a second start").await;

    let file = dir.path().join("wrong.yaml");
    std::fs::write(&file, "ingester:\n  wall:\n    sync: interval\n").unwrap();
    let mut misled = Skald::new(&dir.path().join("other"), &[&format!("--config.file={}", file.display())]);
    misled.spawn();
    assert_eq!(misled.process().wait(), Some(1));
    assert!(misled.log().contains("wrong.yaml") && misled.log().contains("did you mean"), "{}", misled.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn samples_of_any_past_are_refused_or_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut skald = Skald::start(dir.path(), &[]).await;
    let accepted = Accepted::push(&skald).await;
    let pasts = [i64::MIN, i64::MIN + 1, -62_135_596_801_000, -1, 0, 1, now_ms() - 400 * 86_400_000];
    let mut kept = Vec::new();
    for (i, past) in pasts.into_iter().enumerate() {
        let name = format!("past{i}");
        let answer =
            skald.push(Request::default().series(&[("__name__", &name)], &[(past, 1.0)]).body()).await.unwrap();
        assert!(matches!(answer.status, 200 | 400), "{past}: {answer:?}");
        if answer.status == 200 {
            kept.push((name, past));
        }
    }
    assert!(kept.len() >= 2, "{kept:?}");
    // In memory, after a replay, after a flush, and after a replay of what is left then.
    for step in ["pushed", "replayed", "flushed", "replayed after the flush"] {
        match step {
            "pushed" => {}
            "flushed" => {
                let flushed = skald.post("/ingester/flush").await;
                assert_eq!(flushed.status, 204, "{flushed:?}\n{}", skald.log());
            }
            _ => {
                skald.kill();
                skald.start_again().await;
            }
        }
        accepted.check(&mut skald, step).await;
        for (name, past) in &kept {
            let data = skald.query(name, *past as f64 / 1000.0).await;
            assert_eq!(data["result"][0]["value"][1], "1", "{step}: {name} at {past}: {data}");
        }
    }
}
