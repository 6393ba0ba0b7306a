//! The only file that names atomics and locks: the standard ones, or loom's under `--cfg loom`, so that every ordering in
//! the crate can be model-checked.

#[cfg(not(loom))]
pub(crate) use std::sync::{
    Arc, Weak,
    atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence},
};
#[cfg(not(any(loom, tsan)))]
pub(crate) use std::sync::{Mutex, MutexGuard};
#[cfg(not(loom))]
use std::thread;
#[cfg(not(loom))]
pub(crate) use std::{hint::spin_loop, thread_local};

#[cfg(any(loom, tsan))]
pub(crate) use modelled::OnceLock;
#[cfg(not(any(loom, tsan)))]
pub(crate) use std::sync::OnceLock;

/// Asks for memory that is about to be read.
pub(crate) use das_pages::fetch;

/// Words that are zero at first, in huge pages.
#[cfg(not(loom))]
pub(crate) use das_pages::Words;
#[cfg(loom)]
pub(crate) use modelled::Words;

#[cfg(loom)]
use loom::thread;
#[cfg(tsan)]
pub(crate) use seen::{Mutex, MutexGuard};
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

/// For the helpers of a batch, which share no tree but by its own means: never modelled, but seen by ThreadSanitizer.
pub(crate) mod unmodelled {
    #[cfg(tsan)]
    pub(crate) use super::seen::{Condvar, Mutex, MutexGuard, OnceLock};
    pub(crate) use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };
    #[cfg(not(tsan))]
    pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, OnceLock};

    pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
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

/// A value made by whoever first needs it, while others that do wait.
#[derive(Debug)]
pub(crate) struct Deferred<T> {
    making: Mutex<()>,
    value: OnceLock<T>,
}

impl<T> Deferred<T> {
    pub(crate) fn new() -> Self {
        let (making, value) = (Mutex::new(()), OnceLock::new());
        Self { making, value }
    }

    pub(crate) fn get(&self) -> Option<&T> {
        self.value.get()
    }

    /// Makes the value unless it is there; then it is.
    pub(crate) fn make(&self, make: impl FnOnce() -> T) {
        let _one_at_a_time = lock(&self.making);
        if self.value.get().is_none() {
            let _ = self.value.set(make()); // nobody else does
        }
    }
}

/// A thread that works in the background.
#[derive(Debug)]
pub(crate) struct Worker(thread::JoinHandle<()>);

impl Worker {
    /// Starts one, if there may be another thread.
    pub(crate) fn start(name: &str, work: impl FnOnce() + Send + 'static) -> Option<Self> {
        let builder = thread::Builder::new().name(name.into());
        builder.spawn(work).ok().map(Self)
    }

    #[cfg(not(loom))]
    pub(crate) fn is_finished(&self) -> bool {
        self.0.is_finished()
    }

    /// A model cannot tell.
    #[cfg(loom)]
    pub(crate) fn is_finished(&self) -> bool {
        false
    }

    /// Waits for its end, which may be a panic.
    pub(crate) fn join(self) {
        let _ = self.0.join();
    }
}

#[cfg(any(loom, tsan))]
mod modelled {
    use super::{AtomicBool, Ordering};

    /// `das_pages::Words` of atomics that loom sees.
    #[cfg(loom)]
    #[derive(Debug)]
    pub(crate) struct Words(Box<[super::AtomicU32]>);

    #[cfg(loom)]
    impl Words {
        pub(crate) fn zeroed(len: usize) -> std::io::Result<Self> {
            Ok(Self((0..len).map(|_| super::AtomicU32::new(0)).collect()))
        }
    }

    #[cfg(loom)]
    impl std::ops::Deref for Words {
        type Target = [super::AtomicU32];

        fn deref(&self) -> &[super::AtomicU32] {
            &self.0
        }
    }

    /// `std::sync::OnceLock` as loom must see it, and ThreadSanitizer, which does not see into the standard library: the
    /// value is there once a flag, set with Release, is read with Acquire.
    #[derive(Debug)]
    pub(crate) struct OnceLock<T> {
        claimed: AtomicBool,
        ready: AtomicBool,
        cell: std::sync::OnceLock<T>,
    }

    impl<T> OnceLock<T> {
        pub(crate) fn new() -> Self {
            Self {
                claimed: AtomicBool::new(false),
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
            // Relaxed: says only who is first, and that threads race here.
            if self.claimed.swap(true, Ordering::Relaxed) {
                while !self.ready.load(Ordering::Acquire) {
                    super::spin_loop();
                }
                return Err(value);
            }
            let outcome = self.cell.set(value);
            self.ready.store(true, Ordering::Release);
            outcome
        }
    }
}

#[cfg(tsan)]
mod seen {
    use std::{
        ops::{Deref, DerefMut},
        sync::{
            LockResult, PoisonError, WaitTimeoutResult,
            atomic::{AtomicBool, Ordering},
        },
        time::Duration,
    };

    /// `std::sync::Mutex` as ThreadSanitizer must see it: who locks it reads, with Acquire, what the last one wrote with Release
    /// before unlocking.
    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T> {
        mutex: std::sync::Mutex<T>,
        handed_on: AtomicBool,
    }

    pub(crate) struct MutexGuard<'a, T> {
        /// There until the guard is dropped or waits.
        guard: Option<std::sync::MutexGuard<'a, T>>,
        handed_on: &'a AtomicBool,
    }

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self {
                mutex: std::sync::Mutex::new(value),
                handed_on: AtomicBool::new(false),
            }
        }

        pub(crate) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
            let guard = self.mutex.lock().unwrap_or_else(PoisonError::into_inner);
            Ok(MutexGuard::new(guard, &self.handed_on))
        }
    }

    impl<'a, T> MutexGuard<'a, T> {
        fn new(guard: std::sync::MutexGuard<'a, T>, handed_on: &'a AtomicBool) -> Self {
            handed_on.load(Ordering::Acquire);
            let guard = Some(guard);
            Self { guard, handed_on }
        }

        /// As if unlocked, for who waits.
        fn hand_on(mut self) -> (std::sync::MutexGuard<'a, T>, &'a AtomicBool) {
            self.handed_on.store(true, Ordering::Release);
            (
                self.guard.take().expect("it is not dropped"),
                self.handed_on,
            )
        }
    }

    impl<T> Drop for MutexGuard<'_, T> {
        fn drop(&mut self) {
            if self.guard.is_some() {
                self.handed_on.store(true, Ordering::Release);
            }
        }
    }

    impl<T> Deref for MutexGuard<'_, T> {
        type Target = T;

        fn deref(&self) -> &T {
            self.guard.as_ref().expect("it is not dropped")
        }
    }

    impl<T> DerefMut for MutexGuard<'_, T> {
        fn deref_mut(&mut self) -> &mut T {
            self.guard.as_mut().expect("it is not dropped")
        }
    }

    /// `std::sync::Condvar` for it: who waits unlocks, and locks again.
    #[derive(Debug)]
    pub(crate) struct Condvar(std::sync::Condvar);

    impl Condvar {
        pub(crate) fn new() -> Self {
            Self(std::sync::Condvar::new())
        }

        pub(crate) fn notify_one(&self) {
            self.0.notify_one();
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }

        pub(crate) fn wait<'a, T>(
            &self,
            guard: MutexGuard<'a, T>,
        ) -> LockResult<MutexGuard<'a, T>> {
            let (guard, handed_on) = guard.hand_on();
            let guard = self.0.wait(guard).unwrap_or_else(PoisonError::into_inner);
            Ok(MutexGuard::new(guard, handed_on))
        }

        pub(crate) fn wait_timeout<'a, T>(
            &self,
            guard: MutexGuard<'a, T>,
            patience: Duration,
        ) -> LockResult<(MutexGuard<'a, T>, WaitTimeoutResult)> {
            let (guard, handed_on) = guard.hand_on();
            let waited = self.0.wait_timeout(guard, patience);
            let (guard, result) = waited.unwrap_or_else(PoisonError::into_inner);
            Ok((MutexGuard::new(guard, handed_on), result))
        }
    }

    /// `std::sync::OnceLock` for a static, as the one above.
    pub(crate) struct OnceLock<T> {
        ready: AtomicBool,
        cell: std::sync::OnceLock<T>,
    }

    impl<T> OnceLock<T> {
        pub(crate) const fn new() -> Self {
            Self {
                ready: AtomicBool::new(false),
                cell: std::sync::OnceLock::new(),
            }
        }

        pub(crate) fn get_or_init(&self, make: impl FnOnce() -> T) -> &T {
            self.cell.get_or_init(|| {
                let value = make();
                self.ready.store(true, Ordering::Release); // whoever finds it waits for the cell
                value
            });
            self.ready.load(Ordering::Acquire);
            self.cell.get().expect("it was made")
        }
    }
}
