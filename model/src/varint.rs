//! LEB128 varints as Go's encoding/binary and protobuf write them.

/// Appends `value` as an unsigned varint (1 to 10 bytes).
#[inline]
pub fn put_uvarint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends `value` zig-zag coded (Go's `PutVarint`).
#[inline]
pub fn put_varint(out: &mut Vec<u8>, value: i64) {
    put_uvarint(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// Reads an unsigned varint at `*at` and moves `*at` past it. `None` when the bytes end first or the value
/// does not fit 64 bits; `*at` is then unspecified.
///
/// Always inlined: entries of an index are hundreds of them, and a call costs as much as reading one. So does anything
/// cleverer than byte by byte, as their lengths repeat.
#[inline(always)]
pub fn get_uvarint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let first = *bytes.get(*at)?;
    *at += 1;
    if first < 0x80 {
        return Some(u64::from(first));
    }
    let mut value = u64::from(first & 0x7f);
    let mut shift = 7;
    loop {
        let byte = *bytes.get(*at)?;
        *at += 1;
        if shift == 63 && byte > 1 {
            return None;
        }
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
        shift += 7;
        if shift > 63 {
            return None;
        }
    }
}

/// The number behind its zig-zag code (Go's `PutVarint`).
#[inline]
pub fn from_zig_zag(raw: u64) -> i64 {
    (raw >> 1) as i64 ^ -((raw & 1) as i64)
}

/// Reads a zig-zag varint at `*at`; see [`get_uvarint`].
#[inline]
pub fn get_varint(bytes: &[u8], at: &mut usize) -> Option<i64> {
    let raw = get_uvarint(bytes, at)?;
    Some(from_zig_zag(raw))
}

/// Reads a varint-length-prefixed slice at `*at`. `None` when the length or the bytes are missing.
#[inline]
pub fn get_slice<'a>(bytes: &'a [u8], at: &mut usize) -> Option<&'a [u8]> {
    let len = usize::try_from(get_uvarint(bytes, at)?).ok()?;
    let end = at.checked_add(len)?;
    let slice = bytes.get(*at..end)?;
    *at = end;
    Some(slice)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn uvarint_round_trips(value: u64) {
            let mut out = Vec::new();
            put_uvarint(&mut out, value);
            let mut at = 0;
            prop_assert_eq!(get_uvarint(&out, &mut at), Some(value));
            prop_assert_eq!(at, out.len());
        }

        #[test]
        fn varint_round_trips(value: i64) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            prop_assert_eq!(get_varint(&out, &mut 0), Some(value));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = get_uvarint(&bytes, &mut 0);
            let _ = get_slice(&bytes, &mut 0);
        }
    }

    #[test]
    fn overlong_and_truncated_are_refused() {
        assert_eq!(get_uvarint(&[0x80], &mut 0), None);
        assert_eq!(get_uvarint(&[0xff; 11], &mut 0), None);
        assert_eq!(get_uvarint(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02], &mut 0), None);
    }
}
