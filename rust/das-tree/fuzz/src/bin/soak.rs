//! Runs the committed scripts, then random ones for a time. The same seed gives the same scripts in the same order.
//!
//! ```sh
//! soak [--seconds S] [--operations N] [--seed N] [--threads N] [DIRECTORY OF SCRIPTS]...
//! ```
//!
//! Ends at whichever of the two limits comes first, with one line of JSON. A script on which an answer differs is
//! shortened as far as it goes, written to the working directory, and ends the run with status 1.

use std::{
    panic,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use das_fuzz::{Kind, Tally, run};

struct Settings {
    seconds: u64,
    operations: u64,
    seed: u64,
    threads: u64,
    corpora: Vec<PathBuf>,
}

fn settings() -> Result<Settings, String> {
    let mut settings = Settings {
        seconds: 60,
        operations: u64::MAX,
        seed: 1,
        threads: 1,
        corpora: Vec::new(),
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let target = match argument.as_str() {
            "--seconds" => &mut settings.seconds,
            "--operations" => &mut settings.operations,
            "--seed" => &mut settings.seed,
            "--threads" => &mut settings.threads,
            option if option.starts_with('-') => return Err(format!("unknown option {option}")),
            directory => {
                settings.corpora.push(directory.into());
                continue;
            }
        };
        let value = arguments.next().unwrap_or_default();
        *target = value
            .parse()
            .map_err(|_| format!("{argument} is {value:?}: give a whole number"))?;
    }
    Ok(settings)
}

/// A small generator (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// A script: mostly short ones, some long.
    fn script(&mut self, bytes: &mut Vec<u8>) {
        let length = 32 << ((self.next() >> 32) % 5);
        bytes.clear();
        while bytes.len() < length {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
    }
}

fn fails(bytes: &[u8]) -> bool {
    panic::catch_unwind(|| run(bytes)).is_err()
}

/// Leaves out ever smaller pieces while the script still fails.
fn shortened(mut bytes: Vec<u8>) -> Vec<u8> {
    let mut piece = bytes.len() / 2;
    while piece > 0 {
        let mut at = 0;
        while at < bytes.len() {
            let end = (at + piece).min(bytes.len());
            let without = [&bytes[..at], &bytes[end..]].concat();
            if fails(&without) {
                bytes = without;
            } else {
                at += piece;
            }
        }
        piece /= 2;
    }
    bytes
}

/// What the threads of a run share.
struct Run {
    end: Instant,
    limit: u64,
    operations: AtomicU64,
    scripts: AtomicU64,
    tally: Mutex<Tally>,
    failed: AtomicBool,
}

impl Run {
    fn is_over(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
            || self.operations.load(Ordering::Relaxed) >= self.limit
            || Instant::now() >= self.end
    }

    /// Runs a script; a failing one ends the whole run.
    fn execute(&self, bytes: &[u8], tally: &mut Tally) {
        match panic::catch_unwind(|| run(bytes)) {
            Ok(made) => {
                tally.add(&made);
                self.operations.fetch_add(made.total(), Ordering::Relaxed);
                self.scripts.fetch_add(1, Ordering::Relaxed);
            }
            Err(_) if !self.failed.swap(true, Ordering::Relaxed) => {
                let short = shortened(bytes.to_vec());
                let name = format!("failing-script-{}", std::process::id());
                let written = std::fs::write(&name, &short);
                eprintln!("a script fails: {short:?} ({name}: {written:?})");
            }
            Err(_) => {}
        }
    }

    fn soak(&self, seed: u64) {
        let (mut tally, mut bytes) = (Tally::default(), Vec::new());
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        while !self.is_over() {
            random.script(&mut bytes);
            self.execute(&bytes, &mut tally);
        }
        self.tally.lock().unwrap().add(&tally);
    }
}

fn committed_scripts(corpora: &[PathBuf]) -> Result<Vec<Vec<u8>>, String> {
    let mut files = Vec::new();
    for directory in corpora {
        let problem = |error| format!("{}: {error}", directory.display());
        for entry in std::fs::read_dir(directory).map_err(problem)? {
            files.push(entry.map_err(problem)?.path());
        }
    }
    files.sort();
    let read = |file: &PathBuf| {
        std::fs::read(file).map_err(|error| format!("{}: {error}", file.display()))
    };
    files.iter().map(read).collect()
}

fn report(run: &Run, settings: &Settings, seconds: f64) -> String {
    let tally = run.tally.lock().unwrap();
    let kinds = [
        ("open", Kind::Open),
        ("append", Kind::Append),
        ("close", Kind::Close),
        ("count", Kind::Count),
        ("draft", Kind::Draft),
        ("advance", Kind::Advance),
        ("reload", Kind::Reload),
        ("integrity", Kind::Integrity),
        ("step", Kind::Step),
        ("latest", Kind::Latest),
        ("reject", Kind::Reject),
        ("informed", Kind::Informed),
    ];
    let kinds: Vec<String> = kinds
        .iter()
        .map(|&(name, kind)| format!("\"{name}\": {}", tally.of(kind)))
        .collect();
    format!(
        "{{\"operations\": {}, \"mismatches\": {}, \"scripts\": {}, \"seconds\": {seconds:.0}, \"seed\": {}, \"threads\": {}, {}}}",
        tally.total(),
        u8::from(run.failed.load(Ordering::Relaxed)),
        run.scripts.load(Ordering::Relaxed),
        settings.seed,
        settings.threads,
        kinds.join(", ")
    )
}

fn main() -> ExitCode {
    let start = Instant::now();
    let found = settings().and_then(|settings| {
        let scripts = committed_scripts(&settings.corpora)?;
        Ok((settings, scripts))
    });
    let (settings, scripts) = match found {
        Ok(found) => found,
        Err(problem) => {
            eprintln!("soak: {problem}");
            return ExitCode::from(2);
        }
    };
    let run = Run {
        end: start + Duration::from_secs(settings.seconds),
        limit: settings.operations,
        operations: AtomicU64::new(0),
        scripts: AtomicU64::new(0),
        tally: Mutex::default(),
        failed: AtomicBool::new(false),
    };
    let mut tally = Tally::default();
    scripts
        .iter()
        .for_each(|bytes| run.execute(bytes, &mut tally));
    run.tally.lock().unwrap().add(&tally);
    std::thread::scope(|scope| {
        for thread in 0..settings.threads {
            let run = &run;
            scope.spawn(move || run.soak(settings.seed + thread));
        }
    });
    println!("{}", report(&run, &settings, start.elapsed().as_secs_f64()));
    ExitCode::from(u8::from(run.failed.load(Ordering::Relaxed)))
}
