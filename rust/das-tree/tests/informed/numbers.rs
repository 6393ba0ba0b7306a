//! The numbers of the rule, once more. Whoever changes one in the product changes it here, and in `DESIGN.md`. Which own
//! occurrences are looked at and which contexts are collected is the same as for counts: see `oracle`.

/// Contexts of each source that are asked at a node.
pub const LEVELS: usize = 2;
/// Edges of a node whose occurrences are asked for one in another text.
pub const EDGES: usize = 4;

/// A vote below this does not count.
pub const LEAST_VOTE: f32 = 0.003;
/// An estimate below this is not drafted.
pub const LEAST_SHARE: f32 = 0.003;
/// A vote from this on is a voice.
pub const A_VOICE: f32 = 0.05;
/// Evidence is mixed in while more than this is left.
pub const LEAST_LEFT: f32 = 0.01;
/// Below the first node further evidence is heard while what it could give is at least the first number divided by the nodes of
/// the draft, or the second.
pub const LEAST_HEARD: f32 = 0.4;
pub const MOST_UNHEARD: f32 = 0.025;

/// Odds beyond the entries known: so many times the probability missing, which is at least this.
pub const TAIL: f32 = 1.2;
pub const LEAST_TAIL: f32 = 1e-4;

/// What follows what over all problems is learned from tokens that have not followed so many others elsewhere.
pub const FAMILIAR: usize = 5;

/// A token drawn with more of 255 needs no distribution.
pub const CERTAIN: u8 = 242;

/// Entries of a row, distributions it remembers, steps in which it keeps shares.
pub const ROW_ENTRIES: usize = 16;
pub const ROW_MEMORY: u32 = 16;
pub const ROW_UNIT: f32 = 8191.0;
/// The same of what the own text has been made of.
pub const RECENT_ENTRIES: usize = 64;
pub const RECENT_MEMORY: u32 = 32;

/// Observations that a part begins with, and the most it remembers.
pub const TRUST_PRIOR: f32 = 20.0;
pub const TRUST_MEMORY: f32 = 4096.0;
/// What a token had that no evidence named.
pub const UNNAMED: f32 = 2e-5;
/// Evidence that is reached with less than this learns nothing.
pub const LEAST_REACH: f32 = 1e-3;

/// Log-odds of the last knot, groups of voices, observations a knot begins with, and the most it remembers.
pub const LAST_KNOT: i32 = 6;
pub const GROUPS: u32 = 4;
pub const WORTH_PRIOR: f32 = 20.0;
pub const WORTH_MEMORY: f32 = 8192.0;

/// Parts to begin with, by length of the context (1, 2, 3-4, 5-8, 9-16, more) and occurrences (1, 2, 3-4, more): own text.
pub const OWN: [[f32; 4]; 6] = [
    [0.23, 0.32, 0.32, 0.52],
    [0.42, 0.47, 0.57, 0.58],
    [0.45, 0.55, 0.70, 0.72],
    [0.55, 0.68, 0.73, 0.74],
    [0.60, 0.70, 0.75, 0.76],
    [0.60, 0.70, 0.75, 0.76],
];
/// History.
pub const HISTORY: [[f32; 4]; 6] = [
    [0.11, 0.19, 0.27, 0.18],
    [0.17, 0.24, 0.31, 0.18],
    [0.25, 0.30, 0.38, 0.18],
    [0.48, 0.61, 0.68, 0.65],
    [0.50, 0.62, 0.70, 0.70],
    [0.50, 0.62, 0.70, 0.70],
];
/// Rows over all problems, by distributions seen, after two tokens and after one.
pub const SHARED2: [f32; 4] = [0.39, 0.53, 0.58, 0.65];
pub const SHARED1: [f32; 4] = [0.40, 0.46, 0.56, 0.64];
/// Rows of a problem after a token and what could have been in its place, by distributions seen.
pub const BESIDE: [f32; 4] = [0.30, 0.41, 0.47, 0.52];
/// Rows of drafts not kept, after two tokens and after one; what the own text has been made of.
pub const REJECTED2: f32 = 0.30;
pub const REJECTED1: f32 = 0.43;
pub const RECENT: f32 = 0.42;
