//! Series and their samples on the way to a server.

use super::Error;

/// Series of one request: what Prometheus sends by default.
pub const SERIES_PER_REQUEST: usize = 2000;
pub const CONNECTIONS: usize = 4;
/// Time between two rounds of samples.
pub const STEP_MS: i64 = 15_000;

/// xorshift64*: fast, and the same values in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}

fn put_uvarint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_bytes(out: &mut Vec<u8>, tag: u8, bytes: &[u8]) {
    out.push(tag);
    put_uvarint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// The labels of one series, in ascending order of names, as remote_write encodes them.
pub fn encode_labels(pairs: &[(&str, String)]) -> Vec<u8> {
    let mut out = Vec::with_capacity(400);
    for (name, value) in pairs {
        let mut label = Vec::with_capacity(100);
        put_bytes(&mut label, 0x0A, name.as_bytes());
        put_bytes(&mut label, 0x12, value.as_bytes());
        put_bytes(&mut out, 0x0A, &label);
    }
    out
}

/// Series of one request with their current values.
struct Batch {
    labels: Vec<Vec<u8>>,
    values: Vec<f64>,
    first: usize,
    random: Random,
    /// The next round's body, when that was made beforehand.
    prepared: Option<Vec<u8>>,
}

impl Batch {
    fn new(series: std::ops::Range<usize>, labels: impl Fn(usize) -> Vec<u8>) -> Self {
        let mut random = Random(0x5EED ^ (series.start as u64 + 1));
        Self {
            values: series.clone().map(|_| (random.next() % 1_000_000) as f64).collect(),
            labels: series.clone().map(labels).collect(),
            first: series.start,
            random,
            prepared: None,
        }
    }

    /// The body of one round, every series one sample.
    fn body(&mut self, timestamp: i64) -> Result<Vec<u8>, Error> {
        let mut request = Vec::with_capacity(self.labels.len() * 420);
        let mut series = Vec::with_capacity(420);
        for (i, value) in self.values.iter_mut().enumerate() {
            let random = self.random.next();
            match (self.first + i) % 10 {
                // Six counters of ten, two of them mostly idle.
                0..=3 => *value += (random % 500) as f64,
                4 | 5 if random.is_multiple_of(8) => *value += 1.0,
                4 | 5 => {}
                // Two gauges with decimals, one with whole numbers.
                6 | 7 => *value = (*value + (random % 2001) as f64 / 100.0 - 10.0).max(0.0),
                8 => *value = (random % 4096) as f64,
                _ => {}
            }
            let mut sample = [0_u8; 9];
            sample[0] = 0x09;
            sample[1..].copy_from_slice(&value.to_le_bytes());
            series.clear();
            series.extend_from_slice(&self.labels[i]);
            let mut encoded = sample.to_vec();
            encoded.push(0x10);
            put_uvarint(&mut encoded, timestamp as u64);
            put_bytes(&mut series, 0x12, &encoded);
            put_bytes(&mut request, 0x0A, &series);
        }
        Ok(snap::raw::Encoder::new().compress_vec(&request)?)
    }
}

/// Series that are ready to be sent, by connection: each owns a share of them, so that every series' samples arrive in order.
pub struct Senders {
    shares: Vec<Vec<Batch>>,
    next: i64,
}

impl Batch {
    /// The body of a round, made beforehand if it is the one that was prepared.
    fn take_body(&mut self, timestamp: i64) -> Result<Vec<u8>, Error> {
        self.prepared.take().map_or_else(|| self.body(timestamp), Ok)
    }
}

impl Senders {
    pub fn new(series: usize, first: i64, labels: impl Fn(usize) -> Vec<u8>) -> Self {
        let starts: Vec<usize> = (0..series).step_by(SERIES_PER_REQUEST).collect();
        let share = |connection| {
            let starts = starts.iter().skip(connection).step_by(CONNECTIONS);
            starts.map(|&start| Batch::new(start..(start + SERIES_PER_REQUEST).min(series), &labels)).collect()
        };
        Self { shares: (0..CONNECTIONS).map(share).collect(), next: first }
    }

    /// Makes the requests of the next round, so that making them takes no time while it is measured.
    pub fn prepare(&mut self) -> Result<(), Error> {
        let bodies = self.bodies(self.next)?;
        for (batch, body) in self.shares.iter_mut().flatten().zip(bodies) {
            batch.prepared = Some(body);
        }
        Ok(())
    }

    /// The requests of the round at this time.
    pub fn bodies(&mut self, timestamp: i64) -> Result<Vec<Vec<u8>>, Error> {
        self.shares.iter_mut().flatten().map(|batch| batch.body(timestamp)).collect()
    }

    /// Sends so many rounds of one sample per series, as fast as they are taken; connections share the URLs evenly.
    pub async fn send(&mut self, client: &reqwest::Client, urls: &[String], rounds: usize) -> Result<(), Error> {
        let first = self.next;
        self.next += rounds as i64 * STEP_MS;
        let senders = self.shares.drain(..).zip(urls.iter().cycle()).map(|(mut batches, url)| {
            let (client, url) = (client.clone(), url.clone());
            tokio::spawn(async move {
                for round in 0..rounds {
                    for batch in &mut batches {
                        let body = batch.take_body(first + round as i64 * STEP_MS)?;
                        let response = client
                            .post(&url)
                            .header("Content-Encoding", "snappy")
                            .header("Content-Type", "application/x-protobuf")
                            .header("X-Prometheus-Remote-Write-Version", "0.1.0")
                            .body(body)
                            .send()
                            .await?;
                        if !response.status().is_success() {
                            let status = response.status();
                            return Err(format!("{status}: {}", response.text().await?).into());
                        }
                    }
                }
                Ok::<_, Error>(batches)
            })
        });
        for sender in senders.collect::<Vec<_>>() {
            self.shares.push(sender.await??);
        }
        Ok(())
    }
}
