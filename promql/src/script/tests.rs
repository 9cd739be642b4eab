#![expect(clippy::disallowed_methods, reason = "reads the shared scripts from the disk they are on")]

use super::*;
use crate::parse::{ParseOptions, parse_expr};

fn one_eval(text: &str) -> Eval {
    match parse_script(text).unwrap().pop().unwrap() {
        Command::Eval(eval) => *eval,
        other => panic!("{other:?}"),
    }
}

#[test]
fn commands_and_bodies() {
    let script = "# comment\nclear\n\nload 5m\n  a{b=\"c\"} 0+1x2\n# ends the body\n\nLOAD 1s\n";
    let error = parse_script(script).unwrap_err();
    assert_eq!(error.line, 8, "{error}");
    let commands = parse_script("clear\nload 5m\n\ta 0+1x2 _ {{}}\n\ta 7\n\neval instant at 1m a\n\n").unwrap();
    let [Command::Clear, Command::Load(load), Command::Eval(eval)] = commands.as_slice() else { panic!() };
    assert_eq!((load.line, load.step_ms, load.with_nhcb), (2, 300_000, false));
    assert_eq!(eval.time, EvalTime::Instant(60_000));
    let columns = load.columns().unwrap();
    assert_eq!(columns.len(), 1);
    assert_eq!(columns[0].1.float_values, [7.0]);
}

#[test]
fn expectations() {
    let eval = one_eval(
        "eval range from 0 to 10m step 5m sum(a) > 1\n expect warn msg: text: with colon\n expect no_info\n \
         expect ordered\n {} 1 2\n b _x2 3\n",
    );
    assert_eq!(eval.query, "sum(a) > 1");
    assert_eq!(eval.time, EvalTime::Range(RangeOfTimes { start_ms: 0, end_ms: 600_000, step_ms: 300_000 }));
    assert!(eval.ordered && eval.no_info && eval.info.is_empty());
    assert!(eval.warn[0].matches("text: with colon") && !eval.warn[0].matches("text"));
    let Expected::Series(series) = eval.expected else { panic!() };
    assert_eq!(series[1].values.len(), 3);

    let eval = one_eval("eval instant at 0 x\n expect fail regex:conf.*t\n");
    assert!(eval.fail.is_some_and(|fail| fail.matches("a conflict") && !fail.matches("none")));
    assert_eq!(one_eval("eval instant at 0 1\n -0x10\n").expected, Expected::Scalar(-16.0));
    let eval = one_eval("eval instant at 0 \"x\"\n expect string \"a\\nb\"\n");
    assert_eq!(eval.expected, Expected::String("a\nb".to_owned()));
    let eval = one_eval("eval instant at 2m a[1m]\n expect range vector from 1m to 2m step 60s\n a 1 2\n");
    assert_eq!(eval.range_vector, Some(RangeOfTimes { start_ms: 60_000, end_ms: 120_000, step_ms: 60_000 }));
    assert!(one_eval("eval_fail instant at 0 x\n").fail.is_some());
}

#[test]
fn bad_scripts_are_refused() {
    for script in [
        "nonsense",
        "load",
        "load 5x",
        "load 1m\n a@st 1s\n",
        "load 1m\n a@st 1s\n b 1\n",
        "load 1m\n a@st 1s\n a 1 2\n",
        "eval",
        "eval instant at 1m",
        "eval range from 2m to 1m step 1m x",
        "eval range from 2m until 1m step 1m x",
        "eval instant at 0 x\n expect nothing\n",
        "eval instant at 0 x\n expect fail\n expect fail\n",
        "eval instant at 0 x\n expect warn\n expect no_warn\n",
        "eval instant at 0 x\n a 1 2\n",
        "eval instant at 0 x\n expect warn regex: (\n",
    ] {
        assert!(parse_script(script).is_err(), "{script}");
    }
}

#[test]
fn start_timestamps_are_read() {
    let commands = parse_script("load 1m\n a@st _ 1ms-1mx2 -30s _x2\n a 1x6\n").unwrap();
    let [Command::Load(load)] = commands.as_slice() else { panic!() };
    let expected = [None, Some(1), Some(-59_999), Some(-119_999), Some(-30_000), None, None];
    assert_eq!(load.series[0].start_offsets_ms.as_deref(), Some(expected.as_slice()));
}

#[test]
fn classic_histograms_become_native_ones() {
    let script = "load_with_nhcb 1m\n h_bucket{le=\"1\",a=\"b\"} 2 3\n h_bucket{le=\"0.5\",a=\"b\"} 1\n \
                  h_count{a=\"b\"} 5 5\n h_sum{a=\"b\"} 7\n";
    let commands = parse_script(script).unwrap();
    let [Command::Load(load)] = commands.as_slice() else { panic!() };
    let columns = load.columns().unwrap();
    let (_, native) = columns.iter().find(|(labels, _)| labels.metric_name() == Some("h")).unwrap();
    assert_eq!(native.histogram_timestamps, [0, 60_000]);
    let first = &native.histograms[0];
    assert_eq!((first.count, first.sum, &first.custom_values[..]), (5.0, 7.0, [0.5, 1.0].as_slice()));
    assert_eq!(first.positive_buckets, [1.0, 1.0, 3.0]);
}

/// Every query of the shared scripts parses, but for those that must fail.
#[test]
fn shared_scripts_parse() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared/promqltest");
    let Ok(files) = std::fs::read_dir(directory) else {
        println!("skipped: no shared scripts");
        return;
    };
    let mut evals = 0;
    for file in files {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|e| e != "test") {
            continue;
        }
        let commands = parse_script(&std::fs::read_to_string(&path).unwrap());
        for command in commands.unwrap_or_else(|e| panic!("{}: {e}", path.display())) {
            match command {
                Command::Clear => {}
                Command::Load(load) => drop(load.columns().unwrap()),
                Command::Eval(eval) => {
                    evals += 1;
                    let parsed = parse_expr(&eval.query, &ParseOptions::ALL);
                    if let (Err(e), None) = (&parsed, &eval.fail) {
                        panic!("{}:{}: {}: {e}", path.display(), eval.line, eval.query);
                    }
                }
            }
        }
    }
    assert!(evals > 1000, "{evals}");
}
