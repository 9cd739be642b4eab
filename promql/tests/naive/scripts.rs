//! The model over Prometheus' own scripts: they say whether the model itself is right.

#![expect(clippy::disallowed_methods, reason = "the scripts are files, and the test has no simulated disk")]

use std::collections::BTreeMap;
use std::path::Path;

use skald_model::Labels;
use skald_promql::eval::EvalParams;
use skald_promql::parse::{ParseOptions, parse_expr};
use skald_promql::script::{Command, Eval, EvalTime, Expected, parse_script};
use skald_promql::series_description::SequenceValue;

use crate::compare::{close_enough, sorted};
use crate::evaluator::{Answer, Naive, Point};
use crate::histogram::Hist;
use crate::value::*;

/// The model knows no start timestamps.
const SKIPPED: &[&str] = &["start_timestamps.test"];

#[test]
fn the_model_passes_the_scripts() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut passed, mut failed) = (0, Vec::new());
    for folder in [manifest.join("../../shared/promqltest"), manifest.join("tests/scripts")] {
        let Ok(entries) = std::fs::read_dir(&folder) else {
            println!("skipped: no scripts at {}", folder.display());
            continue;
        };
        for path in entries.map(|entry| entry.expect("a readable folder").path()) {
            let name = path.file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned());
            if !name.ends_with(".test") || SKIPPED.contains(&name.as_str()) {
                continue;
            }
            let text = std::fs::read_to_string(&path).expect("a readable script");
            let (good, bad) = run(&text);
            passed += good;
            failed.extend(bad.into_iter().map(|text| format!("{name}:{text}")));
        }
    }
    println!("the model passes {passed} evaluations");
    assert!(failed.is_empty(), "{} of {}: {failed:#?}", failed.len(), passed + failed.len());
}

fn run(text: &str) -> (usize, Vec<String>) {
    let mut stored: BTreeMap<Labels, Vec<Sample>> = BTreeMap::new();
    let (mut passed, mut failed) = (0, Vec::new());
    for command in parse_script(text).expect("a valid script") {
        match command {
            Command::Clear => stored.clear(),
            Command::Load(load) => {
                for (labels, columns) in load.columns().expect("loadable series") {
                    let floats = columns.float_timestamps.iter().zip(&columns.float_values);
                    let hists = columns.histogram_timestamps.iter().zip(&columns.histograms);
                    let mut samples: Vec<Sample> = floats.map(|(t, v)| Sample { t: *t, v: V::F(*v) }).collect();
                    samples.extend(hists.map(|(t, h)| Sample { t: *t, v: V::hist(Hist::of(h)) }));
                    samples.sort_by_key(|s| s.t);
                    let all = stored.entry(labels).or_default();
                    let newest = all.last().map(|s| s.t);
                    all.extend(samples.into_iter().filter(|s| newest.is_none_or(|newest| s.t > newest)));
                }
            }
            Command::Eval(eval) => {
                let data: Data = stored.iter().map(|(labels, samples)| (labels.clone(), samples.clone())).collect();
                match check(&eval, &data) {
                    Ok(()) => passed += 1,
                    Err(text) => {
                        let text: String = text.chars().take(500).collect();
                        failed.push(format!("{}: {}: {text}", eval.line, eval.query));
                    }
                }
            }
        }
    }
    (passed, failed)
}

fn check(eval: &Eval, data: &Data) -> Result<(), String> {
    let params = match eval.time {
        EvalTime::Instant(at) => EvalParams::instant(at),
        EvalTime::Range(range) => EvalParams::range(range.start_ms, range.end_ms, range.step_ms),
    };
    let params = EvalParams { delayed_name_removal: true, ..params };
    let query = match parse_expr(&eval.query, &ParseOptions::ALL) {
        Ok(query) => query,
        Err(_) if eval.fail.is_some() => return Ok(()),
        Err(error) => return Err(error.to_string()),
    };
    let answer = match (Naive::new(data, &params, None).run(&query), &eval.fail) {
        (Err(_), Some(_)) => return Ok(()),
        (Ok(answer), Some(_)) => return Err(format!("not refused: {answer:?}")),
        (Err(error), None) => return Err(format!("{error:?}")),
        (Ok(answer), None) => answer,
    };
    let want = match (&eval.expected, eval.time, eval.range_vector) {
        (Expected::String(text), ..) => return same_text(&answer, text),
        (Expected::Scalar(value), EvalTime::Instant(at), _) => vec![(Labels::empty(), at, V::F(*value))],
        (Expected::Scalar(_), ..) => return Err("a scalar of a range".to_owned()),
        (Expected::Series(_), EvalTime::Range(range), None) | (Expected::Series(_), _, Some(range)) => {
            expected(&eval.expected, range.start_ms, range.step_ms)
        }
        (Expected::Series(_), EvalTime::Instant(at), None) => expected(&eval.expected, at, 0),
    };
    let Answer::Points(got) = answer else { return Err(format!("{answer:?}")) };
    if eval.ordered && got.iter().map(|p| &p.0).ne(want.iter().map(|p| &p.0)) {
        return Err(format!("ordered {got:?}, want {want:?}"));
    }
    let (got, want) = (sorted(got), sorted(want));
    let same = |(got, want): (&Point, &Point)| got.0 == want.0 && got.1 == want.1 && close_enough(&got.2, &want.2);
    if got.len() == want.len() && got.iter().zip(&want).all(same) {
        return Ok(());
    }
    Err(format!("got {got:?}, want {want:?}"))
}

fn same_text(answer: &Answer, want: &str) -> Result<(), String> {
    match answer {
        Answer::Text(got) if got == want => Ok(()),
        other => Err(format!("got {other:?}, want {want:?}")),
    }
}

fn expected(expected: &Expected, start: i64, step: i64) -> Vec<Point> {
    let Expected::Series(series) = expected else { return Vec::new() };
    let mut points = Vec::new();
    for s in series {
        for (i, value) in s.values.iter().enumerate() {
            let v = match value {
                SequenceValue::Omitted => continue,
                SequenceValue::Float(value) => V::F(*value),
                SequenceValue::Histogram { histogram, .. } => V::hist(Hist::of(histogram)),
            };
            points.push((s.labels.clone(), start + i as i64 * step, v));
        }
    }
    points
}
