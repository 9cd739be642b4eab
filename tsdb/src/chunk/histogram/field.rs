//! How one field of a histogram sample is coded against the same field of the sample before.

use crate::chunk::ChunkError;
use crate::chunk::bits::{BitReader, BitWriter, ByteSink};
use crate::chunk::varbit;
use crate::chunk::xor::XorWindow;

/// A field's state between two samples; made by the first sample.
///
/// Reading past the end gives zeros: the caller checks the reader once per sample.
pub trait Field: Copy + std::fmt::Debug {
    /// What the field holds.
    type Value: Copy + Default + PartialEq + PartialOrd + std::fmt::Debug;

    /// Writes the field of a chunk's first sample.
    fn put_first<S: ByteSink>(out: &mut BitWriter<'_, S>, value: Self::Value) -> Self;
    /// Writes the field of a later sample.
    fn put_next<S: ByteSink>(&mut self, out: &mut BitWriter<'_, S>, value: Self::Value);
    /// Reads the field of a chunk's first sample.
    fn take_first(bits: &mut BitReader<'_>) -> Self;
    /// Reads the field of a later sample.
    fn take_next(&mut self, bits: &mut BitReader<'_>) -> Result<(), ChunkError>;
    /// The field in the last sample.
    fn value(&self) -> Self::Value;
}

/// An integer count: unsigned in the first sample, then the delta of its delta.
#[derive(Debug, Clone, Copy)]
pub struct CountField {
    value: u64,
    delta: i64,
}

impl Field for CountField {
    type Value = u64;

    #[inline]
    fn put_first<S: ByteSink>(out: &mut BitWriter<'_, S>, value: u64) -> Self {
        varbit::put_uint(out, value);
        Self { value, delta: 0 }
    }

    #[inline]
    fn put_next<S: ByteSink>(&mut self, out: &mut BitWriter<'_, S>, value: u64) {
        let delta = value.wrapping_sub(self.value) as i64;
        varbit::put_int(out, delta.wrapping_sub(self.delta));
        *self = Self { value, delta };
    }

    #[inline]
    fn take_first(bits: &mut BitReader<'_>) -> Self {
        Self { value: varbit::take_uint(bits), delta: 0 }
    }

    #[inline]
    fn take_next(&mut self, bits: &mut BitReader<'_>) -> Result<(), ChunkError> {
        self.delta = self.delta.wrapping_add(varbit::take_int(bits));
        self.value = self.value.wrapping_add(self.delta as u64);
        Ok(())
    }

    #[inline]
    fn value(&self) -> u64 {
        self.value
    }
}

/// An integer bucket: signed in the first sample, then the delta of its delta.
#[derive(Debug, Clone, Copy)]
pub struct DeltaField {
    value: i64,
    delta: i64,
}

impl Field for DeltaField {
    type Value = i64;

    #[inline]
    fn put_first<S: ByteSink>(out: &mut BitWriter<'_, S>, value: i64) -> Self {
        varbit::put_int(out, value);
        Self { value, delta: 0 }
    }

    #[inline]
    fn put_next<S: ByteSink>(&mut self, out: &mut BitWriter<'_, S>, value: i64) {
        let delta = value.wrapping_sub(self.value);
        varbit::put_int(out, delta.wrapping_sub(self.delta));
        *self = Self { value, delta };
    }

    #[inline]
    fn take_first(bits: &mut BitReader<'_>) -> Self {
        Self { value: varbit::take_int(bits), delta: 0 }
    }

    #[inline]
    fn take_next(&mut self, bits: &mut BitReader<'_>) -> Result<(), ChunkError> {
        self.delta = self.delta.wrapping_add(varbit::take_int(bits));
        self.value = self.value.wrapping_add(self.delta);
        Ok(())
    }

    #[inline]
    fn value(&self) -> i64 {
        self.value
    }
}

/// A float: 64 bits in the first sample, then as in XOR chunks, with a window of its own.
#[derive(Debug, Clone, Copy)]
pub struct XorField {
    value_bits: u64,
    window: XorWindow,
}

impl Field for XorField {
    type Value = f64;

    #[inline]
    fn put_first<S: ByteSink>(out: &mut BitWriter<'_, S>, value: f64) -> Self {
        out.put(value.to_bits(), 64);
        Self { value_bits: value.to_bits(), window: XorWindow::NONE }
    }

    #[inline]
    fn put_next<S: ByteSink>(&mut self, out: &mut BitWriter<'_, S>, value: f64) {
        self.window.put(out, value.to_bits() ^ self.value_bits);
        self.value_bits = value.to_bits();
    }

    #[inline]
    fn take_first(bits: &mut BitReader<'_>) -> Self {
        Self { value_bits: bits.take(64), window: XorWindow::NONE }
    }

    #[inline]
    fn take_next(&mut self, bits: &mut BitReader<'_>) -> Result<(), ChunkError> {
        self.value_bits ^= self.window.take(bits)?;
        Ok(())
    }

    #[inline]
    fn value(&self) -> f64 {
        f64::from_bits(self.value_bits)
    }
}
