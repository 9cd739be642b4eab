//! Encoding a chunk whose samples are all there.

use skald_model::TimestampMs;

use super::XorWindow;
use crate::chunk::bits::BitWriter;
#[cfg(target_arch = "x86_64")]
use crate::processor;

/// A whole chunk of samples that ascend, at most 65,535 of them: byte for byte what an [`super::XorAppender`] makes of them.
pub fn encode(times: &[TimestampMs], values: &[f64]) -> Vec<u8> {
    // Values of many digits take nine bytes; nearly all chunks need less, so that the vector does not grow.
    let mut chunk = Vec::with_capacity(32 + 9 * times.len());
    encode_into(times, values, &mut chunk);
    chunk
}

/// Appends that to `chunk`.
pub(crate) fn encode_into(times: &[TimestampMs], values: &[f64], chunk: &mut Vec<u8>) {
    #[cfg(target_arch = "x86_64")]
    if processor::has_bit_instructions() {
        #[expect(unsafe_code, reason = "a tenth less time")]
        // SAFETY: the processor has them.
        return unsafe { encode_bmi2(times, values, chunk) };
    }
    encode_any(times, values, chunk);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "bmi1,bmi2,lzcnt,movbe")]
fn encode_bmi2(times: &[TimestampMs], values: &[f64], chunk: &mut Vec<u8>) {
    encode_any(times, values, chunk);
}

#[inline(always)]
fn encode_any(times: &[TimestampMs], values: &[f64], chunk: &mut Vec<u8>) {
    let num_samples = u16::try_from(times.len()).unwrap_or(u16::MAX);
    chunk.extend_from_slice(&num_samples.to_be_bytes());
    let mut out = BitWriter::new(chunk);
    let mut samples =
        times.iter().zip(values).take(usize::from(num_samples)).map(|(time, value)| (*time, value.to_bits()));
    let (mut last_time, mut last_bits, mut last_delta) = (0, 0, 0_u64);
    let mut window = XorWindow::NONE;
    if let Some((time, bits)) = samples.next() {
        out.put_varint(time);
        out.put(bits, 64);
        (last_time, last_bits) = (time, bits);
    }
    if let Some((time, bits)) = samples.next() {
        last_delta = time.wrapping_sub(last_time) as u64;
        out.put_uvarint(last_delta);
        window.put(&mut out, bits ^ last_bits);
        (last_time, last_bits) = (time, bits);
    }
    for (time, bits) in samples {
        let delta = time.wrapping_sub(last_time) as u64;
        let dod = delta.wrapping_sub(last_delta) as i64;
        // The code of the time waits for what it can be put together with.
        let (code, count) = match dod {
            // Without a branch on 0, which is anybody's guess where times jitter.
            -0x1fff..=0x2000 => {
                let some = u64::from(dod != 0);
                ((0b10 << 14 | (dod as u64 & 0x3fff)) & some.wrapping_neg(), 1 + 15 * some as u32)
            }
            -0xffff..=0x1_0000 => (0b110 << 17 | (dod as u64 & 0x1_ffff), 20),
            -0x7_ffff..=0x8_0000 => (0b1110 << 20 | (dod as u64 & 0xf_ffff), 24),
            _ => {
                out.put(0b1111, 4);
                out.put(dod as u64, 64);
                (0, 0)
            }
        };
        let xor = bits ^ last_bits;
        (last_time, last_bits, last_delta) = (time, bits, delta);
        if xor == 0 {
            out.put(code << 1, count + 1);
            continue;
        }
        window.put_changed(&mut out, xor, (code << 2 | 0b10, count + 2), (code << 2 | 0b11, count + 2));
    }
    out.finish();
}
