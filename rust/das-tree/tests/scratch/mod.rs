//! Files that go with a test.

use std::path::PathBuf;

/// The name of a file of this thread's own, in memory if there is a place for that: files are synced to disk. What is there
/// in the end is removed.
pub struct File(pub PathBuf);

impl File {
    pub fn new(test: &str) -> Self {
        let (process, thread) = (std::process::id(), std::thread::current().id());
        let memory = PathBuf::from("/dev/shm");
        let folder = if memory.is_dir() {
            memory
        } else {
            std::env::temp_dir()
        };
        Self(folder.join(format!("das-{test}-{process}-{thread:?}")))
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
