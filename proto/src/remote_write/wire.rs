//! Protobuf's wire format, read in place.

use skald_model::varint;

use super::DecodeError;

/// Tag of a field: number and wire type, as the wire has it.
pub(super) const fn tag(field: u32, wire: Wire) -> u32 {
    field << 3 | wire as u32
}

/// Wire types that protobuf still uses.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Wire {
    Varint = 0,
    Fixed64 = 1,
    Bytes = 2,
    Fixed32 = 5,
}

/// Walks the fields of one message. Offsets are those of the outermost message, so that errors and slices can name them.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    /// The outermost message, cut at the end of this one.
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Offset of the next byte.
    #[inline]
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// The outermost message, cut at the end of this one.
    #[inline]
    pub(super) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Continues at `at`, which lies inside this message.
    #[inline]
    pub(super) fn seek(&mut self, at: usize) {
        debug_assert!(at <= self.bytes.len());
        self.at = at;
    }

    /// Bytes not read yet.
    #[inline]
    pub(super) fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// The next field's tag; `None` at the end of the message.
    #[inline]
    pub(super) fn tag(&mut self) -> Result<Option<u32>, DecodeError> {
        if self.at >= self.bytes.len() {
            return Ok(None);
        }
        let start = self.at;
        let tag = self.varint()?;
        match u32::try_from(tag) {
            Ok(tag) if tag >> 3 != 0 => Ok(Some(tag)),
            _ => Err(DecodeError::Protobuf { at: start, what: "field number out of range" }),
        }
    }

    #[inline]
    pub(super) fn varint(&mut self) -> Result<u64, DecodeError> {
        let start = self.at;
        varint::get_uvarint(self.bytes, &mut self.at)
            .ok_or(DecodeError::Protobuf { at: start, what: "varint is cut off or longer than 64 bits" })
    }

    /// A zig-zag coded varint.
    #[inline]
    pub(super) fn signed(&mut self) -> Result<i64, DecodeError> {
        let raw = self.varint()?;
        Ok((raw >> 1) as i64 ^ -((raw & 1) as i64))
    }

    /// A double, its bits as sent.
    #[inline]
    pub(super) fn double(&mut self) -> Result<f64, DecodeError> {
        let Some(bytes) = self.bytes[self.at..].first_chunk::<8>() else {
            return Err(self.error("fixed 64-bit value is cut off"));
        };
        self.at += 8;
        Ok(f64::from_bits(u64::from_le_bytes(*bytes)))
    }

    /// A nested message.
    #[inline]
    pub(super) fn message(&mut self) -> Result<Reader<'a>, DecodeError> {
        let start = self.at;
        let len = self.varint()?;
        if len > self.remaining() as u64 {
            return Err(DecodeError::Protobuf { at: start, what: "length reaches beyond its message" });
        }
        let end = self.at + len as usize;
        let nested = Reader { bytes: &self.bytes[..end], at: self.at };
        self.at = end;
        Ok(nested)
    }

    /// A bytes or string field.
    #[inline]
    pub(super) fn slice(&mut self) -> Result<&'a [u8], DecodeError> {
        let nested = self.message()?;
        Ok(&nested.bytes[nested.at..])
    }

    /// Passes over a field that the caller does not know. `known` has bit `n` set for each field number `n` the caller
    /// does know: such a one came with an unexpected wire type and is refused, not lost.
    #[cold]
    pub(super) fn skip(&mut self, tag: u32, known: u32) -> Result<(), DecodeError> {
        let field = tag >> 3;
        if field < 32 && known & 1 << field != 0 {
            return Err(self.error("known field has another wire type"));
        }
        let fixed = match tag & 7 {
            wire if wire == Wire::Varint as u32 => return self.varint().map(drop),
            wire if wire == Wire::Bytes as u32 => return self.message().map(drop),
            wire if wire == Wire::Fixed64 as u32 => 8,
            wire if wire == Wire::Fixed32 as u32 => 4,
            // Groups (3, 4) would need a depth limit; no version of remote_write has any.
            _ => return Err(self.error("unsupported wire type")),
        };
        if self.remaining() < fixed {
            return Err(self.error("fixed-width value is cut off"));
        }
        self.at += fixed;
        Ok(())
    }

    #[cold]
    pub(super) fn error(&self, what: &'static str) -> DecodeError {
        DecodeError::Protobuf { at: self.at, what }
    }
}
