//! The crate's error: opaque outside, an enum inside.

use std::fmt;

use crate::{history::MAX_WEIGHT, known::MAX_ENTRIES};

/// Why a call was refused. The structure it was made on is unchanged.
#[derive(Clone, Debug, PartialEq)]
pub struct Error(pub(crate) Kind);

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
    Token {
        index: usize,
        value: u32,
    },
    Closed,
    MaxDepth(usize),
    SequenceTooLong {
        length: usize,
        limit: usize,
    },
    TreeFull {
        limit: u64,
    },
    EmptyQuery,
    QueryTooLong {
        length: usize,
        limit: usize,
    },
    Window(usize),
    Decay(f64),
    Weight(f64),
    KnownWidth(usize),
    KnownShape {
        ids: usize,
        probabilities: usize,
        width: usize,
    },
    KnownRows {
        rows: usize,
        tokens: usize,
    },
    KnownToken {
        row: usize,
        column: usize,
        value: u32,
    },
    KnownTwice {
        row: usize,
        column: usize,
        value: u32,
    },
    Damaged {
        path: String,
        what: String,
    },
    File {
        path: String,
        what: String,
        kind: std::io::ErrorKind,
    },
}

impl Error {
    /// Whether the call came after the sequence had been closed.
    pub fn is_closed(&self) -> bool {
        self.0 == Kind::Closed
    }

    /// What the operating system said, if a file could not be read or written.
    pub fn io_kind(&self) -> Option<std::io::ErrorKind> {
        match self.0 {
            Kind::File { kind, .. } => Some(kind),
            _ => None,
        }
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
        match &self.0 {
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
            Kind::Decay(value) => write!(out, "decay is {value}: it must be above 0 and at most 1"),
            Kind::Weight(value) => {
                write!(out, "weight is {value}: it must be from 0 to {MAX_WEIGHT}")
            }
            Kind::KnownWidth(value) => {
                write!(
                    out,
                    "ids has {value} columns: at most {MAX_ENTRIES} entries of a distribution are kept"
                )
            }
            Kind::KnownShape {
                ids,
                probabilities,
                width,
            } => {
                write!(
                    out,
                    "ids has {ids} and probabilities {probabilities} entries: both need a row of {width} for each token"
                )
            }
            Kind::KnownRows { rows, tokens } => {
                write!(
                    out,
                    "ids has {rows} rows: give one for each token, {tokens}"
                )
            }
            Kind::KnownToken { row, column, value } => {
                write!(
                    out,
                    "ids[{row}, {column}] is {value}: tokens of distributions must be below 2^24"
                )
            }
            Kind::KnownTwice { row, column, value } => {
                write!(
                    out,
                    "ids[{row}, {column}] is {value}: the row has that token already, give it once"
                )
            }
            Kind::Damaged { path, what } | Kind::File { path, what, .. } => {
                write!(out, "{path}: {what}")
            }
        }
    }
}

impl std::error::Error for Error {}
