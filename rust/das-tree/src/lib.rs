//! An online suffix tree over token ids.
#![forbid(unsafe_code)]
