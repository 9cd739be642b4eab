//! Where a series stands in the token space.

/// A point of the token space.
pub type Token = u32;

/// The token of a series: the same for every sender and at every time.
///
/// `hash` is the series' 128-bit hash. The tenant takes part, so that equal series of many tenants (`up` of each) do not
/// meet in one group.
pub fn series_token(tenant: &str, hash: u128) -> Token {
    (mix(hash as u64 ^ mix(fnv1a(tenant.as_bytes()))) >> 32) as Token
}

/// The token of a metric family's metadata.
pub fn metadata_token(tenant: &str, metric: &str) -> Token {
    (mix(fnv1a(metric.as_bytes()) ^ mix(fnv1a(tenant.as_bytes()))) >> 32) as Token
}

/// FNV-1a with 64 bits.
pub(crate) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3))
}

/// The finaliser of SplitMix64: every input bit reaches every output bit.
pub(crate) fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Placement is a contract between versions: a change here moves every series of every cluster.
    #[test]
    fn tokens_are_stable() {
        assert_eq!(series_token("anonymous", 0), 1_090_826_400);
        assert_eq!(series_token("anonymous", 0x0123_4567_89AB_CDEF_0123_4567_89AB_CDEF), 2_214_521_372);
        assert_eq!(metadata_token("tenant-1", "up"), 120_617_502);
    }
}
