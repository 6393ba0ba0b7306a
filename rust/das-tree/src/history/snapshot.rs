//! A history in a file.
//!
//! ```text
//! file     magic (8 bytes), version u32, header, problems, lore
//! header   window u64, max_bytes u64, max_depth u64, decay f64, generation u64, clock u64, expired u64, evicted u64,
//!          number of problems u64, from version 2 on what drafts draw on u64 (a bit each: soft, shared, rejected), checksum
//! problem  key u64, visits u64, generation u64, base visit u64, last use u64, number of rollouts u64, rollouts,
//!          from version 5 on the order of chunks: their number u64, u32 each, checksum
//! rollout  visit u64, weight f64, counted weight f64, apart u8, number of tokens u64, number of entries u64,
//!          tokens u32 each; if there are entries: sizes u8 for each token, entries u32 each
//! lore     (from version 2 on) number of words u64, words u32 each (see `backoff.rs`), checksum
//! ```
//!
//! All numbers are little-endian. A checksum is the CRC-32 of everything before it. The file is written beside the old one and
//! renamed over it when it is safely on disk, so there is a whole file at every moment. Trees are not stored: they are made
//! from the texts. Which occurrence a place in a tree remembers depends on where the chunks of its text lie. So where rollouts
//! grew side by side there is, for each chunk from the first on, the number of the rollout it is of, among those not apart.
//! Where there is nothing, one rollout came after the other.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io::{self, BufReader, BufWriter, Read, Write},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use crate::{
    error::{Error, Kind},
    history::{
        HistoryOptions, RolloutHistory,
        inner::Inner,
        problem::{Problem, SavedProblem, SavedRollout, Standing},
        rebuild::SourceText,
        script::{Script, chunks},
        wire::{Input, Output, damaged},
    },
    id::TOKEN_LIMIT,
    sync::{Arc, lock},
    text::MAX_SEQUENCE,
};

const MAGIC: [u8; 8] = *b"DASHIST\n";
/// Raised with every change of the format.
const VERSION: u32 = 5;
/// The first version whose lore can be used: earlier ones had other kinds of evidence.
const LORE_VERSION: u32 = 4;
/// Longer than it takes to lock a file after it was made.
const AN_EMPTY_FILE_LASTS: Duration = Duration::from_secs(600);

impl RolloutHistory {
    /// Writes the history to a file, in place of what is there. A rollout that runs is written as far as it has come, as if it
    /// ended there. Rollouts may go on meanwhile. What processes that were killed in a save to the same file have left beside it
    /// is removed.
    ///
    /// # Errors
    /// If the file cannot be written; what was there before is untouched.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let _one_at_a_time = lock(&self.shared.saving);
        let (header, problems) = self.image();
        let lore = self.shared.backoff.words();
        let fresh = beside(path, Arc::as_ptr(&self.shared) as usize);
        sweep(path);
        let written = write(&fresh, &header, &problems, &lore);
        // The file is locked, and so nobody else's to remove, until it has its name.
        let written = written.and_then(|_locked| replace(&fresh, path));
        written.map_err(|error| {
            let _ = fs::remove_file(&fresh); // what failed is reported below
            failed(path, &error)
        })
    }

    /// Reads a history that [`Self::save`] has written; `change` may alter its options. Trees are made in the background.
    ///
    /// # Errors
    /// If the file cannot be read, is none of this kind, of a newer version, truncated or damaged, or if the options are
    /// invalid.
    pub fn load(path: &Path, change: impl FnOnce(&mut HistoryOptions)) -> Result<Self, Error> {
        let file = File::open(path).map_err(|error| failed(path, &error))?;
        let mut input = Input::new(BufReader::with_capacity(1 << 16, file));
        let (mut header, problems, lore) =
            read(&mut input).map_err(|error| failed(path, &error))?;
        change(&mut header.options);
        header.options.check()?;
        let history = Self::restored(&header, problems);
        history.shared.backoff.restore(&lore);
        Ok(history)
    }

    /// What a file is to hold, at one moment.
    fn image(&self) -> (Header, Vec<SavedProblem>) {
        let inner = loop {
            self.maintain();
            let inner = lock(&self.shared.inner);
            if inner.due.is_empty() {
                break inner;
            }
        };
        let mut problems: Vec<SavedProblem> = inner
            .problems
            .iter()
            .map(|(&key, problem)| problem.saved(key, self.shared.options.window))
            .collect();
        problems.sort_unstable_by_key(|problem| problem.key);
        // Those that run on outside the window are not in the file, for there they have ended.
        let present: usize = inner.problems.values().map(|its| its.rollouts.len()).sum();
        let saved: usize = problems.iter().map(|its| its.rollouts.len()).sum();
        let header = Header {
            options: self.shared.options,
            generation: inner.generation,
            clock: inner.clock,
            expired_rollouts: inner.expired_rollouts + (present - saved) as u64,
            evicted_problems: inner.evicted_problems,
            problems: problems.len() as u64,
        };
        (header, problems)
    }

    fn restored(header: &Header, problems: Vec<SavedProblem>) -> Self {
        let inner = Inner {
            generation: header.generation,
            clock: header.clock,
            expired_rollouts: header.expired_rollouts,
            evicted_problems: header.evicted_problems,
            ..Inner::default()
        };
        let history = Self::with(header.options, Arc::default(), inner);
        let shared = &history.shared;
        let mut inner = lock(&shared.inner);
        let mut rebuilds = Vec::new();
        for saved in problems {
            let key = saved.key;
            let problem =
                Problem::restored(&shared.options, &shared.ledger, shared.lore(key), saved);
            inner.directory += problem.directory();
            inner.scripts += problem.scripts();
            if let Standing::Due(rebuild) = &problem.standing {
                rebuilds.push(Arc::downgrade(rebuild));
                inner.make_due(key, rebuild.reserved);
            }
            inner.problems.insert(key, problem);
            inner.touch(key);
        }
        let dropped = shared.evict(&mut inner);
        inner.work(rebuilds, dropped);
        drop(inner);
        history
    }
}

/// What precedes the problems.
struct Header {
    options: HistoryOptions,
    generation: u64,
    clock: u64,
    expired_rollouts: u64,
    evicted_problems: u64,
    problems: u64,
}

/// A name for the new file in the directory of the old one, that nobody else uses.
fn beside(path: &Path, history: usize) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}-{history:x}.tmp", std::process::id()));
    path.with_file_name(name)
}

/// Whether a file's name is one that [`beside`] gives.
fn is_beside(path: &Path, name: &OsStr) -> bool {
    let own = path.file_name().unwrap_or_default().as_encoded_bytes();
    let rest = name.as_encoded_bytes().strip_prefix(own);
    let rest = rest.and_then(|rest| rest.strip_prefix(b".")?.strip_suffix(b".tmp"));
    let mut parts = rest.unwrap_or_default().splitn(2, |&byte| byte == b'-');
    let is_number = |part: Option<&[u8]>, is_digit: fn(&u8) -> bool| {
        part.is_some_and(|part| !part.is_empty() && part.iter().all(is_digit))
    };
    is_number(parts.next(), u8::is_ascii_digit) && is_number(parts.next(), u8::is_ascii_hexdigit)
}

/// The directory a file is in.
fn directory(path: &Path) -> &Path {
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    directory.unwrap_or(Path::new("."))
}

/// Removes what saves that did not come to their end have left beside a file. Who saves has a lock on its file, which ends with
/// its process. What cannot be locked or removed stays: it only takes room.
fn sweep(path: &Path) {
    let entries = fs::read_dir(directory(path)).into_iter().flatten();
    for entry in entries.flatten() {
        if !is_beside(path, &entry.file_name()) {
            continue;
        }
        let left = entry.path();
        if File::options().write(true).open(&left).is_ok_and(is_left) {
            let _ = fs::remove_file(&left);
        }
    }
}

/// Whether nobody is at work on this file. One that is empty may have been made just now, its lock about to be taken.
fn is_left(file: File) -> bool {
    let is_old = |time: SystemTime| time.elapsed().is_ok_and(|age| age > AN_EMPTY_FILE_LASTS);
    let is_begun = file
        .metadata()
        .is_ok_and(|about| about.len() > 0 || about.modified().is_ok_and(is_old));
    is_begun && file.try_lock().is_ok()
}

/// Puts a file in the place of another, for good.
fn replace(fresh: &Path, path: &Path) -> io::Result<()> {
    fs::rename(fresh, path)?;
    File::open(directory(path))?.sync_all()
}

fn failed(path: &Path, error: &io::Error) -> Error {
    let (path, what) = (path.display().to_string(), error.to_string());
    Error(match error.kind() {
        io::ErrorKind::InvalidData => Kind::Damaged { path, what },
        kind => Kind::File { path, what, kind },
    })
}

/// Writes a file, locked as long as it is open. Where files cannot be locked nobody can think that it is nobody's.
fn write(
    path: &Path,
    header: &Header,
    problems: &[SavedProblem],
    lore: &[u32],
) -> io::Result<File> {
    let file = File::create(path)?;
    let _ = file.try_lock(); // as said above
    let mut output = Output::new(BufWriter::with_capacity(1 << 16, file));
    output.bytes(&MAGIC)?;
    output.flush()?; // so that it is not empty: see `is_left`
    output.bytes(&VERSION.to_le_bytes())?;
    let options = header.options;
    output.number(options.window as u64)?;
    output.number(options.max_bytes as u64)?;
    output.number(options.max_depth as u64)?;
    output.number(options.decay.to_bits())?;
    output.number(header.generation)?;
    output.number(header.clock)?;
    output.number(header.expired_rollouts)?;
    output.number(header.evicted_problems)?;
    output.number(header.problems)?;
    let drawn_on = [options.soft, options.shared, options.rejected];
    let bits = drawn_on
        .iter()
        .rev()
        .fold(0, |bits, &on| bits << 1 | u64::from(on));
    output.number(bits)?;
    output.checksum()?;
    for problem in problems {
        output.number(problem.key)?;
        output.number(problem.visits)?;
        output.number(problem.generation)?;
        output.number(problem.base)?;
        output.number(problem.last_used)?;
        output.number(problem.rollouts.len() as u64)?;
        // Rollouts may go on: their texts are read once.
        let scripts = problem.rollouts.iter().map(|rollout| rollout.text.script());
        let scripts: Vec<Arc<Script>> = scripts.collect();
        for (rollout, script) in problem.rollouts.iter().zip(&scripts) {
            write_rollout(&mut output, rollout, script)?;
        }
        let order = chunk_order(&problem.rollouts, &scripts);
        output.number(order.len() as u64)?;
        output.words(&order)?;
        output.checksum()?;
    }
    output.number(lore.len() as u64)?;
    output.words(lore)?;
    output.checksum()?;
    let file = output
        .into_writer()
        .into_inner()
        .map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    Ok(file)
}

/// Which of the rollouts in the tree each chunk of these texts is of; nothing if one came after the other.
fn chunk_order(rollouts: &[SavedRollout], scripts: &[Arc<Script>]) -> Vec<u32> {
    let here = rollouts.iter().zip(scripts);
    let here = here.filter(|(rollout, _)| !rollout.apart).zip(0..);
    let mut chunks: Vec<(u32, u32)> = Vec::new();
    for ((rollout, script), number) in here {
        if let SourceText::Tree(tree, id) = &rollout.text {
            let its = tree.chunks_of(*id, script.len());
            chunks.extend(its.map(|chunk| (chunk, number)));
        }
    }
    if chunks.is_sorted() {
        return Vec::new();
    }
    chunks.sort_unstable();
    chunks.into_iter().map(|(_, number)| number).collect()
}

fn write_rollout(
    output: &mut Output<impl Write>,
    rollout: &SavedRollout,
    script: &Script,
) -> io::Result<()> {
    output.number(rollout.visit)?;
    output.number(rollout.weight.to_bits())?;
    output.number(rollout.counted.to_bits())?;
    output.bytes(&[u8::from(rollout.apart)])?;
    output.number(script.len() as u64)?;
    output.number(script.entries().len() as u64)?;
    output.words(script.tokens())?;
    output.bytes(script.sizes())?;
    output.words(script.entries())
}

fn read(input: &mut Input<impl Read>) -> io::Result<(Header, Vec<SavedProblem>, Vec<u32>)> {
    let (mut magic, mut version) = ([0; 8], [0; 4]);
    input.fill(&mut magic)?;
    if magic != MAGIC {
        return Err(damaged("it is not a rollout history"));
    }
    input.fill(&mut version)?;
    let version = u32::from_le_bytes(version);
    if version > VERSION {
        return Err(damaged(format!(
            "it has format version {version}, this release reads versions up to {VERSION}: use a newer release"
        )));
    }
    let options = HistoryOptions {
        window: input.number()? as usize,
        max_bytes: input.number()? as usize,
        max_depth: input.number()? as usize,
        decay: f64::from_bits(input.number()?),
        ..HistoryOptions::default()
    };
    let mut header = Header {
        options,
        generation: input.number()?,
        clock: input.number()?,
        expired_rollouts: input.number()?,
        evicted_problems: input.number()?,
        problems: input.number()?,
    };
    if version > 1 {
        let bits = input.number()?;
        let is_on = |bit: u32| bits >> bit & 1 == 1;
        let options = &mut header.options;
        (options.soft, options.shared, options.rejected) = (is_on(0), is_on(1), is_on(2));
    }
    input.checksum("the header")?;
    let mut problems = Vec::new();
    for _ in 0..header.problems {
        problems.push(read_problem(input, version)?);
    }
    let mut lore = Vec::new();
    if version > 1 {
        let words = input.number()?;
        lore = input.words(words as usize)?;
        if version < LORE_VERSION {
            lore.clear();
        }
        input.checksum("what was learnt over all problems")?;
    }
    input.end()?;
    Ok((header, problems, lore))
}

fn read_problem(input: &mut Input<impl Read>, version: u32) -> io::Result<SavedProblem> {
    let mut problem = SavedProblem {
        key: input.number()?,
        visits: input.number()?,
        generation: input.number()?,
        base: input.number()?,
        last_used: input.number()?,
        rollouts: Vec::new(),
        order: Vec::new(),
    };
    for _ in 0..input.number()? {
        problem.rollouts.push(read_rollout(input)?);
    }
    if version > 4 {
        let chunks = input.number()?;
        problem.order = input.words(chunks as usize)?;
    }
    input.checksum(&format!("problem {}", problem.key))?;
    check_order(&problem)?;
    Ok(problem)
}

/// Checks that the order of chunks, if there is one, has those of the rollouts in the tree, which begin in their own order.
fn check_order(problem: &SavedProblem) -> io::Result<()> {
    let here = problem.rollouts.iter().filter(|rollout| !rollout.apart);
    let expected: Vec<usize> = here.map(|rollout| chunks(rollout.text.len())).collect();
    let mut found = Vec::new();
    for &number in &problem.order {
        let number = number as usize;
        if number == found.len() {
            found.push(0);
        }
        match found.get_mut(number) {
            Some(chunks) => *chunks += 1,
            None => return Err(damaged("a rollout begins before an earlier one")),
        }
    }
    if !problem.order.is_empty() && found != expected {
        return Err(damaged("the order of chunks does not fit the rollouts"));
    }
    Ok(())
}

fn read_rollout(input: &mut Input<impl Read>) -> io::Result<SavedRollout> {
    let visit = input.number()?;
    let (weight, counted) = (
        f64::from_bits(input.number()?),
        f64::from_bits(input.number()?),
    );
    let mut apart = [0];
    input.fill(&mut apart)?;
    let (tokens, entries) = (input.number()?, input.number()?);
    if tokens > MAX_SEQUENCE as u64 - 2 || entries > 8 * tokens {
        return Err(damaged("a rollout's length is impossible"));
    }
    let text = input.words(tokens as usize)?;
    let mut sizes = vec![0; if entries > 0 { tokens as usize } else { 0 }];
    input.fill(&mut sizes)?;
    let entries = input.words(entries as usize)?;
    if text.iter().any(|&token| token >= TOKEN_LIMIT) {
        return Err(damaged("a rollout holds impossible tokens"));
    }
    let script = Script::from_parts(text, sizes, entries);
    let script =
        script.ok_or_else(|| damaged("a rollout's distributions do not fit its tokens"))?;
    Ok(SavedRollout {
        visit,
        weight,
        counted,
        apart: apart != [0],
        text: SourceText::Script(Arc::new(script)),
    })
}
