//! The only file that names atomics and locks: the standard ones, or loom's under `--cfg loom`, so that every ordering in
//! the crate can be model-checked.

#[cfg(not(loom))]
pub(crate) use std::sync::{
    Arc, Mutex, MutexGuard, Weak,
    atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence},
};
#[cfg(not(loom))]
pub(crate) use std::{hint::spin_loop, thread_local};

#[cfg(any(loom, tsan))]
pub(crate) use modelled::OnceLock;
#[cfg(not(any(loom, tsan)))]
pub(crate) use std::sync::OnceLock;

/// A value made by whoever first needs it, while others that do wait. Trees have none, so it is not modelled.
pub(crate) type Deferred<T> = std::sync::OnceLock<T>;

#[cfg(loom)]
pub(crate) use {
    loom::sync::{
        Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence},
    },
    loom::{hint::spin_loop, thread_local},
    // Reference counting is not what the models are about, and loom has no `Weak`.
    std::sync::{Arc, Weak},
};

/// For the helpers of a batch, which share no tree but by its own means: never modelled.
pub(crate) mod unmodelled {
    pub(crate) use std::sync::{
        Arc, Condvar, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    };

    pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
        mutex
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Locks a mutex; a panic of an earlier holder does not spread, since all shared state is valid between any two steps.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(any(loom, tsan))]
mod modelled {
    use super::{AtomicBool, Ordering};

    /// `std::sync::OnceLock` as loom must see it, and ThreadSanitizer, which does not see into the standard library: the
    /// value is there once a flag, set with Release, is read with Acquire.
    #[derive(Debug)]
    pub(crate) struct OnceLock<T> {
        ready: AtomicBool,
        cell: std::sync::OnceLock<T>,
    }

    impl<T> OnceLock<T> {
        pub(crate) fn new() -> Self {
            Self {
                ready: AtomicBool::new(false),
                cell: std::sync::OnceLock::new(),
            }
        }

        pub(crate) fn get(&self) -> Option<&T> {
            if self.ready.load(Ordering::Acquire) {
                self.cell.get()
            } else {
                None
            }
        }

        pub(crate) fn set(&self, value: T) -> Result<(), T> {
            let outcome = self.cell.set(value);
            if outcome.is_ok() || cfg!(loom) {
                self.ready.store(true, Ordering::Release);
            }
            while !self.ready.load(Ordering::Acquire) {
                super::spin_loop();
            }
            outcome
        }
    }
}
