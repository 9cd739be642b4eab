//! Prometheus' own tool on blocks we wrote, where it is installed.

use std::process::Command;

use super::*;
use crate::disk::RealDisk;

fn promtool(arguments: &[&std::ffi::OsStr]) -> Option<String> {
    let output = match Command::new("promtool").arg("tsdb").args(arguments).output() {
        Ok(output) => output,
        Err(_) => {
            println!("skipped: promtool is not installed");
            return None;
        }
    };
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

fn content() -> Content {
    let mut content = Content::new();
    for i in 0..300_i64 {
        let labels = Labels::from_pairs([
            ("__name__", ["up", "http_requests_total", "odd"][i as usize % 3].to_owned()),
            ("instance", format!("10.0.0.{}:9100", i / 3)),
            ("job", if i % 2 == 0 { "é\"\\".to_owned() } else { "node".to_owned() }),
            ("Zone", "a".repeat(1 + i as usize % 130)),
        ]);
        let value = |n: i64| match n % 7 {
            0 => f64::INFINITY,
            1 => -0.0,
            2 => f64::NAN,
            _ => (i * n) as f64 * 0.1,
        };
        let samples: Vec<(i64, f64)> = (0..i % 50 + 1).map(|n| (i + n * 15_000, value(n))).collect();
        content.insert(labels, samples.chunks(20).map(floats).collect());
    }
    content
}

#[test]
fn promtool_reads_what_we_write() {
    let dir = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let content = content();
    let meta = write(&disk, dir.path(), new_block(1 << 80, 0, 7_200_000), &content, 20_000);
    assert!(meta.thanos.as_ref().unwrap().files.len() > 3, "several segments: {meta:?}");
    // A read-only database looks for a log.
    RealDisk.create_dir_all(&dir.path().join("wal")).unwrap();
    let path = dir.path().as_os_str();

    let Some(list) = promtool(&["list".as_ref(), path]) else { return };
    let row: Vec<&str> =
        list.lines().find(|l| l.starts_with(&meta.ulid.to_string())).unwrap().split_whitespace().collect();
    let stats = meta.stats;
    let numbers = [stats.num_samples, stats.num_chunks, stats.num_series].map(|n| n.to_string());
    assert_eq!(row[4..7], numbers, "{list}");

    let ulid = meta.ulid.to_string();
    let analysis = promtool(&["analyze".as_ref(), path, ulid.as_ref()]).unwrap();
    assert!(analysis.contains("Series: 300\n") && analysis.contains("Label names: 4\n"), "{analysis}");

    let dump = promtool(&["dump".as_ref(), path]).unwrap();
    let mut dumped: Vec<(String, i64, u64)> = Vec::new();
    for line in dump.lines() {
        let mut fields = line.rsplitn(3, ' ');
        let time = fields.next().unwrap().parse().unwrap();
        let value: f64 = fields.next().unwrap().parse().unwrap();
        dumped.push((fields.next().unwrap().to_owned(), time, value.to_bits()));
    }
    let mut expected: Vec<(String, i64, u64)> = Vec::new();
    for (labels, chunks) in &content {
        let mut columns = skald_model::Columns::default();
        crate::decode::decode_series(chunks, skald_model::QueryRange::ALL, &mut columns).unwrap();
        let samples = columns.float_timestamps.iter().zip(&columns.float_values);
        expected.extend(samples.map(|(&time, value)| (labels.to_string(), time, value.to_bits())));
    }
    dumped.sort();
    expected.sort();
    assert_eq!(dumped.len(), expected.len());
    assert!(dumped == expected, "first difference: {:?}", dumped.iter().zip(&expected).find(|(a, b)| a != b));
}
