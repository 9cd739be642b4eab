use proptest::prelude::*;
use skald_model::STALE_NAN_BITS;

use super::*;

type Samples = Vec<(TimestampMs, u64)>;

fn encode(samples: &[(TimestampMs, u64)]) -> Vec<u8> {
    let mut appender = XorAppender::new();
    let mut chunk = Vec::new();
    for &(time, bits) in samples {
        appender.append(&mut chunk, time, f64::from_bits(bits)).unwrap();
    }
    assert_eq!(appender.byte_len(), chunk.len());
    if !samples.is_empty() {
        let (times, values): (Vec<_>, Vec<_>) = samples.iter().map(|(t, bits)| (*t, f64::from_bits(*bits))).unzip();
        assert_eq!(super::encode(&times, &values), chunk);
    }
    chunk
}

fn decode_range(chunk: &[u8], min: TimestampMs, max: TimestampMs) -> Result<Samples, ChunkError> {
    let mut out = Columns::default();
    let range = QueryRange { min, max };
    let decoded = decode(chunk, range, &mut out);
    let careful = XorReader::new(chunk).and_then(|reader| {
        let len = usize::from(reader.num_samples);
        let (mut times, mut values) = (vec![0; len], vec![0.0; len]);
        let kept = reader.decode_into(range, &mut times, &mut values)?;
        assert_eq!(times[..kept], out.float_timestamps);
        Ok(())
    });
    assert_eq!(decoded, careful, "reading fast is reading carefully");
    decoded?;
    assert_eq!(out.float_timestamps.len(), out.float_values.len());
    Ok(out.float_timestamps.iter().zip(&out.float_values).map(|(&t, v)| (t, v.to_bits())).collect())
}

fn decode_all(chunk: &[u8]) -> Result<Samples, ChunkError> {
    decode_range(chunk, i64::MIN, i64::MAX)
}

/// Values as monitored systems have them, and the nasty ones.
fn value_bits() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (0u32..1000).prop_map(|v| f64::from(v).to_bits()),
        2 => any::<f64>().prop_map(f64::to_bits),
        1 => any::<u64>(),
        1 => prop_oneof![
            Just(STALE_NAN_BITS),
            Just(0x7FF8_0000_0000_0001),
            Just(f64::INFINITY.to_bits()),
            Just(f64::NEG_INFINITY.to_bits()),
            Just((-0.0f64).to_bits()),
            Just(0),
            Just(u64::MAX),
            Just(1),
        ],
    ]
}

/// Strictly ascending samples whose gaps reach every class of the time code, class limits included.
pub(crate) fn samples() -> impl Strategy<Value = Samples> {
    let gap = prop_oneof![
        4 => Just(15_000i64),
        2 => 1i64..100_000,
        1 => (prop_oneof![Just(1i64 << 13), Just(1 << 16), Just(1 << 19)], -2i64..3).prop_map(|(a, b)| 15_000 + a + b),
        1 => 1i64..1 << 40,
        1 => 1i64..=i64::MAX,
    ];
    let start = prop_oneof![any::<i64>(), -10i64..10, Just(1_717_200_000_000i64), Just(i64::MIN)];
    (start, proptest::collection::vec((gap, value_bits()), 0..200)).prop_map(|(start, gaps)| {
        let mut time = start;
        let mut samples = Vec::new();
        for (gap, bits) in gaps {
            samples.push((time, bits));
            match time.checked_add(gap) {
                Some(next) => time = next,
                None => break,
            }
        }
        samples
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn round_trips_bit_by_bit(samples in samples()) {
        if samples.is_empty() {
            return Ok(());
        }
        let chunk = encode(&samples);
        prop_assert_eq!(decode_all(&chunk), Ok(samples));
    }

    #[test]
    fn range_is_closed(samples in samples(), a in any::<prop::sample::Index>(), b in any::<prop::sample::Index>(), off in -1i64..2) {
        if samples.is_empty() {
            return Ok(());
        }
        let min = a.get(&samples).0.saturating_add(off);
        let max = b.get(&samples).0.saturating_sub(off);
        let expected: Samples = samples.iter().copied().filter(|s| min <= s.0 && s.0 <= max).collect();
        prop_assert_eq!(decode_range(&encode(&samples), min, max), Ok(expected));
    }

    #[test]
    fn every_prefix_is_a_chunk_and_resumes(samples in samples(), split in any::<prop::sample::Index>()) {
        if samples.is_empty() {
            return Ok(());
        }
        let split = 1 + split.index(samples.len());
        let mut chunk = encode(&samples[..split]);
        prop_assert_eq!(decode_all(&chunk), Ok(samples[..split].to_vec()));
        let mut appender = XorAppender::resume(&chunk).unwrap();
        for &(time, bits) in &samples[split..] {
            appender.append(&mut chunk, time, f64::from_bits(bits)).unwrap();
        }
        prop_assert_eq!(chunk, encode(&samples));
    }

    #[test]
    fn flipped_bits_never_panic_nor_break_order(samples in samples(), flips in proptest::collection::vec(any::<prop::sample::Index>(), 1..4), cut in any::<prop::sample::Index>()) {
        if samples.is_empty() {
            return Ok(());
        }
        let mut chunk = encode(&samples);
        for flip in flips {
            let bit = flip.index(chunk.len() * 8);
            chunk[bit / 8] ^= 1 << (bit % 8);
        }
        for bytes in [&chunk[..], &chunk[..cut.index(chunk.len())]] {
            if let Ok(samples) = decode_all(bytes) {
                prop_assert!(samples.windows(2).all(|w| w[0].0 < w[1].0));
            }
            let _ = XorAppender::resume(bytes);
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        let _ = decode_all(&bytes);
        let _ = XorAppender::resume(&bytes);
    }
}

#[test]
fn appender_stays_small() {
    assert_eq!(size_of::<XorAppender>(), 32);
}

#[test]
fn known_bytes() {
    // Worked by hand from the format page: t0 = 1, v0 = 1.0; t1 = 2 same value; t2 = 3 same value.
    let chunk = encode(&[(1, 1f64.to_bits()), (2, 1f64.to_bits()), (3, 1f64.to_bits())]);
    assert_eq!(chunk, [0, 3, 2, 0x3f, 0xf0, 0, 0, 0, 0, 0, 0, 1, 0]);
    // v1 ^ v0 of 1.0 and 2.0 is 0x7ff0…: 1 leading zero, 11 significant bits, 52 trailing zeros.
    let chunk = encode(&[(0, 1f64.to_bits()), (60_000, 2f64.to_bits())]);
    assert_eq!(chunk[..11], [0, 2, 0, 0x3f, 0xf0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(chunk[11..14], [0xe0, 0xd4, 0x03]);
    assert_eq!(chunk[14..], [0b1100_0010, 0b0101_1111, 0b1111_1111]);
}

#[test]
fn truncated_chunks_are_refused_and_leave_the_output_alone() {
    let samples: Samples = (0..50).map(|i| (i * 15_000, f64::from(i as u32).sqrt().to_bits())).collect();
    let chunk = encode(&samples);
    for len in 0..chunk.len() {
        let mut out = Columns::default();
        out.push_float(-1, 7.0);
        assert!(decode(&chunk[..len], QueryRange::ALL, &mut out).is_err(), "length {len}");
        assert_eq!(out.float_timestamps, [-1]);
        assert_eq!(out.float_values, [7.0]);
    }
}

#[test]
fn full_chunk_takes_no_more() {
    let mut appender = XorAppender::new();
    let mut chunk = Vec::new();
    let mut time = 0;
    while appender.append(&mut chunk, time, 1.0).is_ok() {
        time += 1;
    }
    assert_eq!(appender.num_samples(), u16::MAX);
    assert_eq!(decode_all(&chunk).unwrap().len(), usize::from(u16::MAX));
    let mut appender = XorAppender::new();
    while appender.encode(time, f64::from_bits((time as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15))).is_ok() {
        time = time.wrapping_mul(3) ^ 1 << 40;
    }
    assert!(appender.byte_len() <= usize::from(u16::MAX));
}

#[test]
fn backwards_time_is_damage_and_repeated_time_is_dropped() {
    assert_eq!(decode_all(&encode(&[(5, 0), (6, 0), (4, 0)])), Err(ChunkError::OutOfOrder));
    assert_eq!(decode_all(&encode(&[(5, 1), (5, 2), (6, 3), (6, 4)])), Ok(vec![(5, 1), (6, 3)]));
}
