//! The crate's error: opaque outside, an enum inside.

use std::fmt;

/// Why a call was refused. The structure it was made on is unchanged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error(pub(crate) Kind);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Token { index: usize, value: u32 },
    Closed,
    MaxDepth(usize),
    SequenceTooLong { length: usize, limit: usize },
    TreeFull { limit: u64 },
    EmptyQuery,
    QueryTooLong { length: usize, limit: usize },
    Window(usize),
}

impl Error {
    /// Whether the call came after the sequence had been closed.
    pub fn is_closed(&self) -> bool {
        self.0 == Kind::Closed
    }

    /// Whether a size limit was reached (a sequence's or a tree's), rather than an argument being wrong.
    pub fn is_capacity(&self) -> bool {
        matches!(self.0, Kind::SequenceTooLong { .. } | Kind::TreeFull { .. })
    }
}

impl From<Kind> for Error {
    fn from(kind: Kind) -> Self {
        Self(kind)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Kind::Token { index, value } => {
                write!(
                    out,
                    "tokens[{index}] is {value}: token ids must be below 2^31"
                )
            }
            Kind::Closed => write!(out, "the sequence is closed: open a new one to go on"),
            Kind::MaxDepth(value) => write!(out, "max_depth is {value}: it must be from 2 to 64"),
            Kind::SequenceTooLong { length, limit } => {
                write!(
                    out,
                    "the sequence would have {length} tokens: the limit is {limit}"
                )
            }
            Kind::TreeFull { limit } => {
                write!(
                    out,
                    "the tree would have more than {limit} tokens: start a new tree"
                )
            }
            Kind::EmptyQuery => write!(out, "tokens is empty: give at least one token"),
            Kind::QueryTooLong { length, limit } => {
                write!(
                    out,
                    "tokens has length {length}: a tree of this max_depth counts up to {limit} tokens"
                )
            }
            Kind::Window(value) => write!(out, "window is {value}: it must be at least 1"),
        }
    }
}

impl std::error::Error for Error {}
