//! Makes a run the same every time: what draws random numbers by itself gets the same ones.
//!
//! Tables of the standard library (and with them tokio's choices between what is ready) are seeded by the operating
//! system's `getrandom`. In this binary it is this function, which always answers the same. Numbers that count up
//! for the length of a process remain, so each seed runs in a process of its own.

/// What the standard library and others ask for random bytes.
///
/// # Safety
/// `buffer` must be valid for writes of `length` bytes, as of the C library's function of that name.
#[expect(unsafe_code, reason = "takes the place of a function of the C library, with its signature")]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut u8, length: usize, _flags: u32) -> isize {
    for at in 0..length {
        // SAFETY: the caller says that so many bytes may be written.
        unsafe { buffer.add(at).write((at as u8).wrapping_mul(151).wrapping_add(17)) };
    }
    length as isize
}
