//! What is made of files, made again when they have changed.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use skald_tsdb::disk::Disk;

use crate::runtime::Clock;

/// How often the files are looked at, at most: a handshake costs more than that, a new certificate can wait so long.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(5);

type Make<T> = Box<dyn Fn(&[Vec<u8>]) -> Result<T, String> + Send + Sync>;

/// Something made of files.
pub(super) struct Renewed<T> {
    paths: Vec<PathBuf>,
    make: Make<T>,
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    /// Never held while files are read.
    state: Mutex<State<T>>,
}

struct State<T> {
    current: Arc<T>,
    contents: Vec<Vec<u8>>,
    looked: Duration,
    /// Why the files as they are now are not in force.
    error: Option<String>,
}

impl<T> Renewed<T> {
    /// Makes it for the first time. `make` gets the contents of `paths` in their order.
    pub fn open(
        paths: Vec<PathBuf>,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        make: impl Fn(&[Vec<u8>]) -> Result<T, String> + Send + Sync + 'static,
    ) -> Result<Self, String> {
        let contents = read(&paths, disk.as_ref())?;
        let current = Arc::new(make(&contents)?);
        let state = State { current, contents, looked: clock.monotonic(), error: None };
        Ok(Self { paths, make: Box::new(make), disk, clock, state: Mutex::new(state) })
    }

    /// What the files say, or said when they were last right.
    pub fn current(&self) -> Arc<T> {
        let now = self.clock.monotonic();
        let known = {
            let mut state = self.state.lock();
            if now.saturating_sub(state.looked) < LOOK_EVERY {
                return state.current.clone();
            }
            state.looked = now;
            state.contents.clone()
        };
        let made = read(&self.paths, self.disk.as_ref()).and_then(|contents| {
            let changed = contents != known;
            Ok(if changed { Some(((self.make)(&contents)?, contents)) } else { None })
        });
        let mut state = self.state.lock();
        match made {
            Ok(None) => state.error = None,
            Ok(Some((current, contents))) => {
                tracing::info!(files = ?self.paths, "certificates read again");
                (state.current, state.contents, state.error) = (Arc::new(current), contents, None);
            }
            Err(error) => {
                if state.error.as_ref() != Some(&error) {
                    tracing::warn!(error, "the certificates were not taken, those before stay in force");
                }
                state.error = Some(error);
            }
        }
        state.current.clone()
    }
}

fn read(paths: &[PathBuf], disk: &dyn Disk) -> Result<Vec<Vec<u8>>, String> {
    let one = |path: &PathBuf| disk.read(path).map_err(|e| format!("cannot read {}: {e}", path.display()));
    paths.iter().map(one).collect()
}
