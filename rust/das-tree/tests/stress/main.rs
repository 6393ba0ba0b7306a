//! Several threads at once: at one tree, and at a history.
#![cfg(not(loom))]

mod history;
mod texts;
mod tree;
