//! What the processor can do beyond what every one of its kind can.

/// Whether it has instructions for bits: shifts by any count, leading zeros, loads of big-endian words. Those of the last ten
/// years have. What reads and writes bit streams is compiled for them, too: it takes a tenth less time.
///
/// Such functions are named `…_bmi2` and enable `bmi1,bmi2,lzcnt,movbe`; to call one is sound where this is true.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn has_bit_instructions() -> bool {
    // Each of these looks at a word in memory, once it was found out.
    is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("movbe")
}
