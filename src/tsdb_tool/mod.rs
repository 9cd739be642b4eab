//! `skald tsdb …`: looks at blocks, checks them, and saves what can be saved of damaged ones.
//!
//! [`place`] finds blocks in a local directory or a bucket and brings a bucket's block to the local disk; each command
//! then works on a directory: [`list`], [`analyze`], [`dump`], [`verify`], [`repair`]. Output is for people or, with
//! `--format=json`, one JSON object a line. What goes on meanwhile stands in [`progress`].
//!
//! Absent on purpose: decoding (that is `skald-tsdb`'s) and any running service.

mod analyze;
mod dump;
mod list;
mod options;
mod place;
mod progress;
mod repair;
mod table;
mod verify;

use std::io::Write;
use std::sync::Arc;

use skald_tsdb::block::BlockError;
use skald_tsdb::disk::{Disk, RealDisk};

use self::place::{FoundBlock, Place};
use self::progress::Progress;
use crate::bucket::opening::OpenError;
use crate::bucket::upload::UploadError;
use crate::bucket::{self, BucketError};
use crate::config::Config;
use crate::data_dir::DataDirError;
use crate::runtime::{Clock, Pool, Rng, SystemClock};

pub use self::options::{Format, Options};

/// What can be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Name the blocks and what they say about themselves.
    List,
    /// Count what bytes and series are spent on.
    Analyze,
    /// Print samples.
    Dump,
    /// Check every checksum and every sample.
    Verify,
    /// Write what is readable of a damaged block as a new one.
    Repair,
}

impl Action {
    /// All of them with their names.
    pub const ALL: [(&'static str, Action); 5] = [
        ("list", Action::List),
        ("analyze", Action::Analyze),
        ("dump", Action::Dump),
        ("verify", Action::Verify),
        ("repair", Action::Repair),
    ];
}

/// One call of `skald tsdb`.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// What to do.
    pub action: Action,
    /// Directory or URL; `None` is the storage of the settings.
    pub location: Option<String>,
    /// How.
    pub options: Options,
    /// The binary's settings: where the storage is, and how it is reached.
    pub config: Config,
}

/// Why a call could not be carried out.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// The location is none.
    #[error("{0}")]
    Location(String),
    /// An option is wrong.
    #[error("--{name}={value}: {why}")]
    Option {
        /// Which.
        name: &'static str,
        /// What it is.
        value: String,
        /// What is wrong.
        why: String,
    },
    /// The storage's settings.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The storage.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// A new block could not be uploaded.
    #[error(transparent)]
    Upload(#[from] UploadError),
    /// Local files.
    #[error("{path}: {source}")]
    Disk {
        /// Which.
        path: String,
        /// What the file system says.
        source: std::io::Error,
    },
    /// A process uses the directory that is to be changed.
    #[error(transparent)]
    InUse(#[from] DataDirError),
    /// A block.
    #[error("block {block}: {source}")]
    Block {
        /// Which.
        block: String,
        /// What is wrong.
        source: BlockError,
    },
    /// The output cannot be written.
    #[error("cannot write the output: {0}")]
    Output(#[from] std::io::Error),
}

/// What commands share.
struct Tool<'a> {
    options: Options,
    place: Place,
    blocks: Vec<FoundBlock>,
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    rng: Arc<Rng>,
    pool: Pool,
    out: &'a mut dyn Write,
}

/// Carries out a call and writes what it finds to `out`. `false` when blocks are damaged (or nothing was found of what was
/// asked for).
pub async fn run(call: Call, pool: Pool, out: &mut dyn Write) -> Result<bool, ToolError> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let place = Place::open(call.location.as_deref(), &call.config, disk.clone())?;
    let blocks = place.find_blocks(&call.options).await?;
    let (clock, rng) = (Arc::new(SystemClock::default()), Arc::new(Rng::from_os()));
    if blocks.is_empty() {
        eprintln!("skald: no block found in {place}");
    }
    let action = call.action;
    let mut tool = Tool { options: call.options, place, blocks, disk, clock, rng, pool, out };
    let outcome = match action {
        Action::List => tool.list().await,
        Action::Analyze => tool.analyze().await,
        Action::Dump => tool.dump().await,
        Action::Verify => tool.verify().await,
        Action::Repair => tool.repair().await,
    };
    match outcome {
        // Whoever reads the output has seen enough.
        Err(ToolError::Output(error)) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(true),
        outcome => outcome.and_then(|sound| {
            tool.out.flush()?;
            Ok(sound && !tool.blocks.is_empty())
        }),
    }
}

impl Tool<'_> {
    fn is_json(&self) -> bool {
        self.options.format == Format::Json
    }

    /// One line of JSON.
    fn print_json(&mut self, value: &serde_json::Value) -> Result<(), ToolError> {
        Ok(writeln!(self.out, "{value}")?)
    }

    fn progress(&self, block: &FoundBlock, what: &str) -> Progress {
        Progress::new(format!("{what} {}", block.ulid))
    }
}

/// The error of a block.
fn of_block(block: &FoundBlock) -> impl FnOnce(BlockError) -> ToolError {
    let block = block.name();
    move |source| ToolError::Block { block, source }
}

/// Opens the bucket with another prefix.
fn open_at(config: &Config, prefix: &str, disk: &dyn Disk) -> Result<Arc<dyn bucket::Bucket>, ToolError> {
    let mut storage = config.blocks_storage.clone();
    storage.storage_prefix = prefix.to_owned();
    Ok(Arc::new(bucket::open(&storage, &config.data_dir, disk)?))
}
