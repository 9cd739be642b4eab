//! Bytes of the few things that travel: varints and length-prefixed texts, each text with a limit of its own.
//!
//! Decoding never panics, never allocates more than the bytes at hand, and refuses what it does not understand.

/// Why bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end too early.
    #[error("{0} is cut short")]
    Truncated(&'static str),
    /// A text, number or list beyond its limit.
    #[error("{what} is {value}, the limit is {limit}")]
    TooLarge {
        /// What it is the size or value of.
        what: &'static str,
        /// As it says itself.
        value: u64,
        /// Largest accepted.
        limit: u64,
    },
    /// Bytes that are no text.
    #[error("{0} is not UTF-8")]
    NotUtf8(&'static str),
    /// A value nobody writes.
    #[error("{0} makes no sense")]
    Invalid(&'static str),
    /// Of a newer build. The sender is fine: skip it and tell.
    #[error("{what} has version {version}, known up to {newest}")]
    UnknownVersion {
        /// What has a version.
        what: &'static str,
        /// Its version.
        version: u64,
        /// The newest one this build reads.
        newest: u64,
    },
}

/// Appends a number, seven bits a byte, lowest first.
pub fn put_uvarint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a signed number, small magnitudes in few bytes.
pub fn put_varint(out: &mut Vec<u8>, value: i64) {
    put_uvarint(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// Appends bytes behind their length.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_uvarint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// What is left of the bytes being decoded.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    left: &'a [u8],
}

impl<'a> Reader<'a> {
    /// A reader of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { left: bytes }
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.left.is_empty()
    }

    /// All that is left.
    pub fn rest(&self) -> &'a [u8] {
        self.left
    }

    /// The next byte.
    pub fn byte(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        Ok(self.take(1, what)?[0])
    }

    /// The next `count` bytes.
    pub fn take(&mut self, count: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let (taken, left) = self.left.split_at_checked(count).ok_or(DecodeError::Truncated(what))?;
        self.left = left;
        Ok(taken)
    }

    /// A number of at most `limit`.
    pub fn uvarint(&mut self, what: &'static str, limit: u64) -> Result<u64, DecodeError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte(what)?;
            let bits = u64::from(byte & 0x7F);
            if shift == 63 && bits > 1 {
                return Err(DecodeError::Invalid(what));
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return if value <= limit { Ok(value) } else { Err(DecodeError::TooLarge { what, value, limit }) };
            }
        }
        Err(DecodeError::Invalid(what))
    }

    /// A signed number.
    pub fn varint(&mut self, what: &'static str) -> Result<i64, DecodeError> {
        let value = self.uvarint(what, u64::MAX)?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// Bytes behind their length of at most `limit`.
    pub fn bytes(&mut self, what: &'static str, limit: usize) -> Result<&'a [u8], DecodeError> {
        let length = self.uvarint(what, limit as u64)?;
        self.take(length as usize, what)
    }

    /// A text behind its length of at most `limit` bytes.
    pub fn text(&mut self, what: &'static str, limit: usize) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes(what, limit)?).map_err(|_| DecodeError::NotUtf8(what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(unsigned: u64, signed: i64, bytes: Vec<u8>) {
            let mut out = Vec::new();
            put_uvarint(&mut out, unsigned);
            put_varint(&mut out, signed);
            put_bytes(&mut out, &bytes);
            let mut reader = Reader::new(&out);
            prop_assert_eq!(reader.uvarint("u", u64::MAX).unwrap(), unsigned);
            prop_assert_eq!(reader.varint("s").unwrap(), signed);
            prop_assert_eq!(reader.bytes("b", bytes.len()).unwrap(), &bytes[..]);
            prop_assert!(reader.is_empty());
        }
    }

    #[test]
    fn bytes_that_are_refused() {
        let eleven = [0xFF; 11];
        assert_eq!(Reader::new(&eleven).uvarint("n", u64::MAX), Err(DecodeError::Invalid("n")));
        assert_eq!(Reader::new(&[0x80]).uvarint("n", u64::MAX), Err(DecodeError::Truncated("n")));
        assert_eq!(Reader::new(&[5, 1]).bytes("b", 9), Err(DecodeError::Truncated("b")));
        assert_eq!(Reader::new(&[2, 0xFF, 0xFF]).text("t", 9), Err(DecodeError::NotUtf8("t")));
        let beyond = Reader::new(&[0xFF, 0xFF, 0xFF, 0x7F]).bytes("b", 9).unwrap_err();
        assert_eq!(beyond.to_string(), "b is 268435455, the limit is 9");
    }
}
