//! The allocator of the shipped filters: the first pieces of memory come out of a block that is part of the module.
//!
//! The standard library's allocator grows the memory of every instance, even for a few bytes. For a fresh instance per event that is two
//! changes of the memory's protection (`mprotect`), which cost more than a small filter's own work. What the block has no room for comes
//! from the standard allocator. Pieces of the block are not used again, but for the newest: an instance that serves many events
//! (`reuse`) goes on with the standard allocator once the block is full.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::{Cell, UnsafeCell},
    ptr,
};

/// Allocates out of a block of `N` bytes first. For a `#[global_allocator]` of a program with one thread, as every filter is.
#[repr(align(16))]
pub struct Arena<const N: usize> {
    block: UnsafeCell<[u8; N]>,
    used: Cell<usize>,
}

// SAFETY: WebAssembly without the threads proposal, which the gate's engine does not have on, runs one thread.
unsafe impl<const N: usize> Sync for Arena<N> {}

impl<const N: usize> Default for Arena<N> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const N: usize> Arena<N> {
    pub const fn new() -> Self {
        Self { block: UnsafeCell::new([0; N]), used: Cell::new(0) }
    }

    fn start(&self) -> *mut u8 {
        self.block.get().cast()
    }

    /// Where in the block a piece lies; `None`: it is the standard allocator's.
    fn place(&self, piece: *mut u8) -> Option<usize> {
        piece.addr().checked_sub(self.start().addr()).filter(|at| *at < N)
    }
}

// SAFETY: pieces of the block lie behind one another, none is given out twice but the newest after it was given back, and the block
// lives as long as the allocator. Everything else is the standard allocator's, which gets back what it gave.
unsafe impl<const N: usize> GlobalAlloc for Arena<N> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let start = self.start();
        let padding = start.wrapping_add(self.used.get()).align_offset(layout.align());
        let at = self.used.get().saturating_add(padding);
        match at.checked_add(layout.size()) {
            Some(end) if end <= N => {
                self.used.set(end);
                // SAFETY: `at` is within the block.
                unsafe { start.add(at) }
            }
            // SAFETY: the caller's promises are handed on.
            _ => unsafe { System.alloc(layout) },
        }
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        match self.place(piece) {
            Some(at) if at + layout.size() == self.used.get() => self.used.set(at),
            Some(_) => {}
            // SAFETY: it came from there.
            None => unsafe { System.dealloc(piece, layout) },
        }
    }

    unsafe fn realloc(&self, piece: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        match self.place(piece) {
            // SAFETY: it came from there.
            None => unsafe { System.realloc(piece, layout, size) },
            Some(at) if at + layout.size() == self.used.get() && at.checked_add(size).is_some_and(|end| end <= N) => {
                self.used.set(at + size);
                piece
            }
            Some(_) if size <= layout.size() => piece,
            // SAFETY: the new layout is the caller's; both pieces are at least `layout.size()` long and apart.
            Some(_) => unsafe {
                let moved = self.alloc(Layout::from_size_align_unchecked(size, layout.align()));
                if !moved.is_null() {
                    ptr::copy_nonoverlapping(piece, moved, layout.size());
                }
                moved
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize, align: usize) -> Layout {
        Layout::from_size_align(size, align).expect("a layout")
    }

    #[test]
    fn pieces_lie_apart_aligned_and_the_newest_grows_in_place() {
        let arena = Arena::<256>::new();
        // SAFETY: every piece is given back, or grown, with the layout it has.
        unsafe {
            let first = arena.alloc(layout(3, 1));
            first.write_bytes(7, 3);
            let second = arena.alloc(layout(8, 8));
            assert_eq!((arena.place(first), arena.place(second)), (Some(0), Some(8)));
            assert_eq!(arena.realloc(second, layout(8, 8), 64), second);
            let moved = arena.realloc(first, layout(3, 1), 10);
            assert_eq!((arena.place(moved), std::slice::from_raw_parts(moved, 3)), (Some(72), &[7; 3][..]));
            arena.dealloc(moved, layout(10, 1));
            assert_eq!(arena.alloc(layout(4, 1)), moved, "the newest was given back");
            assert_eq!(arena.realloc(second, layout(64, 8), 8), second);
        }
    }

    #[test]
    fn what_finds_no_room_is_the_standard_allocators() {
        let arena = Arena::<64>::new();
        // SAFETY: as above.
        unsafe {
            let large = arena.alloc(layout(65, 1));
            assert_eq!(arena.place(large), None);
            let small = arena.alloc(layout(60, 1));
            small.write_bytes(1, 60);
            let grown = arena.realloc(small, layout(60, 1), 100);
            assert_eq!((arena.place(grown), std::slice::from_raw_parts(grown, 60)), (None, &[1; 60][..]));
            let grown = arena.realloc(grown, layout(100, 1), 200);
            arena.dealloc(grown, layout(200, 1));
            arena.dealloc(large, layout(65, 1));
        }
    }
}
