//! The limit on single allocations: a size taken from the input before it was proven ends the run.

use std::alloc::{GlobalAlloc, Layout, System};

/// No reader needs that much at once for an input of at most some hundred kilobytes. The largest honest ones are a frame of
/// the log, 16 MiB, and what is read ahead of it.
const MAX_BYTES: usize = 64 << 20;

struct Bounded;

#[global_allocator]
static ALLOCATOR: Bounded = Bounded;

fn check(bytes: usize) {
    if bytes > MAX_BYTES {
        eprintln!("one allocation of {bytes} bytes");
        std::process::abort();
    }
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Bounded {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        check(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        check(bytes);
        unsafe { System.realloc(pointer, layout, bytes) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        unsafe { System.dealloc(pointer, layout) }
    }
}
