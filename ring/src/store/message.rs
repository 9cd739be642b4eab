//! The frame of everything that is gossiped.
//!
//! ```text
//! ┌────────────┬──────────┬───────────────┬──────────────────┬───────────────────────────────────────────┐
//! │ version u8 │ flags u8 │ cluster name  │ signature, 16 B, │ body: for each slot: name │ count │       │
//! │ 1          │ 1 signed │ uvarint+bytes │ if signed        │       that many entries (uvarint + bytes) │
//! └────────────┴──────────┴───────────────┴──────────────────┴───────────────────────────────────────────┘
//! ```
//! The signature is HMAC-SHA-256 with the cluster's key over version, flags, name and body, cut to 16 bytes. It keeps out
//! who does not have the key; it does not hide anything, and does not detect what is sent again, which merging bears.
//!
//! Entries are skipped one by one when they cannot be read, so a newer build may add kinds of them within a version.

use ::ring::hmac;

use crate::codec::{DecodeError, Reader, put_bytes, put_uvarint};

/// The newest format this build reads, and the one it writes.
pub const FORMAT_VERSION: u8 = 1;
/// Longest message in bytes: the states of some 50,000 instances.
pub const MAX_MESSAGE_LENGTH: usize = 16 << 20;
/// Longest name of a cluster or slot in bytes.
pub const MAX_NAME_LENGTH: usize = 64;

const SIGNED: u8 = 1;
const SIGNATURE_LENGTH: usize = 16;

/// Who belongs together: a name, and a key where the network is not to be trusted.
#[derive(Clone)]
pub struct Cluster {
    name: Box<str>,
    key: Option<hmac::Key>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cluster({}, {})", self.name, if self.key.is_some() { "signed" } else { "not signed" })
    }
}

/// A cluster's name that nobody could send.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a cluster name has 1 to {max} bytes, this one has {0}", max = MAX_NAME_LENGTH)]
pub struct InvalidClusterName(usize);

/// Why a message was not read. Nothing of it was taken in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Somebody else's: an address that was theirs is ours now, or the other way round.
    #[error("message of cluster {0}")]
    OtherCluster(String),
    /// The right name without the right key.
    #[error("message with a signature that is missing, wrong, or not expected")]
    Signature,
    /// Not understood.
    #[error(transparent)]
    Malformed(#[from] DecodeError),
}

impl Cluster {
    /// The cluster of this name. With a key, which all members share, messages are signed and unsigned ones are refused.
    pub fn new(name: &str, key: Option<&[u8]>) -> Result<Self, InvalidClusterName> {
        if name.is_empty() || name.len() > MAX_NAME_LENGTH {
            return Err(InvalidClusterName(name.len()));
        }
        Ok(Self { name: name.into(), key: key.map(|key| hmac::Key::new(hmac::HMAC_SHA256, key)) })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes of a frame around a body.
    pub(super) fn frame_length(&self) -> usize {
        3 + self.name.len() + self.key.as_ref().map_or(0, |_| SIGNATURE_LENGTH)
    }

    /// What of a frame stands before the signature.
    fn header(&self) -> Vec<u8> {
        let mut frame = vec![FORMAT_VERSION, if self.key.is_some() { SIGNED } else { 0 }];
        put_bytes(&mut frame, self.name.as_bytes());
        frame
    }

    fn context(key: &hmac::Key, header: &[u8], body: &[u8]) -> hmac::Context {
        let mut context = hmac::Context::with_key(key);
        context.update(header);
        context.update(body);
        context
    }

    /// Puts `body` into a frame.
    pub fn seal(&self, body: &[u8]) -> Vec<u8> {
        let mut frame = self.header();
        if let Some(key) = &self.key {
            let signature = Self::context(key, &frame, body).sign();
            frame.extend_from_slice(&signature.as_ref()[..SIGNATURE_LENGTH]);
        }
        frame.extend_from_slice(body);
        frame
    }

    /// The body of a frame of this cluster.
    pub fn open<'a>(&self, message: &'a [u8]) -> Result<&'a [u8], MessageError> {
        let (length, limit) = (message.len() as u64, MAX_MESSAGE_LENGTH as u64);
        if length > limit {
            return Err(DecodeError::TooLarge { what: "message", value: length, limit }.into());
        }
        let mut reader = Reader::new(message);
        let version = reader.byte("format version")?;
        if version != FORMAT_VERSION {
            let (version, newest) = (version.into(), FORMAT_VERSION.into());
            return Err(DecodeError::UnknownVersion { what: "message", version, newest }.into());
        }
        let signed = reader.byte("flags")? & SIGNED != 0;
        let name = reader.text("cluster name", MAX_NAME_LENGTH)?;
        if *name != *self.name {
            return Err(MessageError::OtherCluster(name.to_owned()));
        }
        let Some(key) = &self.key else {
            return if signed { Err(MessageError::Signature) } else { Ok(reader.rest()) };
        };
        if !signed {
            return Err(MessageError::Signature);
        }
        let header = &message[..message.len() - reader.rest().len()];
        let signature = reader.take(SIGNATURE_LENGTH, "signature")?;
        let body = reader.rest();
        let expected = Self::context(key, header, body).sign();
        // In constant time, so that a signature cannot be guessed byte by byte.
        let difference = expected.as_ref().iter().zip(signature).fold(0, |all, (a, b)| all | (a ^ b));
        if difference == 0 { Ok(body) } else { Err(MessageError::Signature) }
    }
}

/// A node's proof that it belongs to a cluster.
#[cfg(feature = "gossip")]
impl Cluster {
    /// What `node` shows beside its name.
    pub(super) fn proof(&self, node: &str) -> Vec<u8> {
        self.seal(node.as_bytes())
    }

    /// Whether `proof` is that of `node`.
    pub(super) fn accepts(&self, node: &str, proof: &[u8]) -> Result<(), MessageError> {
        if self.open(proof)? == node.as_bytes() { Ok(()) } else { Err(MessageError::Signature) }
    }
}

/// Entries of one slot, on their way into a body.
#[derive(Debug, Default)]
pub(super) struct Section {
    entries: Vec<u8>,
    count: u64,
}

impl Section {
    pub(super) fn push(&mut self, entry: &[u8]) {
        put_bytes(&mut self.entries, entry);
        self.count += 1;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Most bytes that a section with this entry more has beyond what it has now.
    pub(super) fn cost(&self, slot: &str, entry: &[u8]) -> usize {
        let opening = if self.count == 0 { 1 + slot.len() + 3 } else { 0 };
        opening + 2 + entry.len()
    }

    pub(super) fn write(&self, slot: &str, body: &mut Vec<u8>) {
        put_bytes(body, slot.as_bytes());
        put_uvarint(body, self.count);
        body.extend_from_slice(&self.entries);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cluster(name: &str, key: Option<&[u8]>) -> Cluster {
        Cluster::new(name, key).unwrap()
    }

    #[test]
    fn only_the_own_clusters_messages_are_opened() {
        let plain = cluster("prod", None);
        let keyed = cluster("prod", Some(b"secret"));
        assert_eq!(plain.open(&plain.seal(b"body")).unwrap(), b"body");
        assert_eq!(keyed.open(&keyed.seal(b"body")).unwrap(), b"body");
        let other = cluster("dev", None);
        let refused = plain.open(&other.seal(b"body")).unwrap_err();
        assert_eq!(refused.to_string(), "message of cluster dev");
        assert_eq!(keyed.open(&plain.seal(b"body")), Err(MessageError::Signature));
        assert_eq!(plain.open(&keyed.seal(b"body")), Err(MessageError::Signature));
        assert_eq!(keyed.open(&cluster("prod", Some(b"guess")).seal(b"body")), Err(MessageError::Signature));
        assert!(Cluster::new("", None).is_err() && Cluster::new(&"x".repeat(65), None).is_err());
        assert_eq!(format!("{keyed:?}"), "Cluster(prod, signed)");
    }

    /// The format is a contract between builds: both messages stay readable.
    #[test]
    fn bytes_are_stable() {
        let mut section = Section::default();
        section.push(b"entry");
        let mut body = Vec::new();
        section.write("ring", &mut body);
        assert_eq!(cluster("prod", None).seal(&body), b"\x01\0\x04prod\x04ring\x01\x05entry");
        let signed = cluster("prod", Some(b"secret")).seal(&body);
        let (signature, rest) = (&signed[7..23], [&signed[..7], &signed[23..]].concat());
        assert_eq!(rest, b"\x01\x01\x04prod\x04ring\x01\x05entry");
        assert_eq!(signature, [65, 122, 225, 72, 31, 89, 141, 138, 140, 177, 121, 51, 139, 8, 211, 244]);
    }

    #[test]
    fn messages_of_newer_builds_and_endless_ones_are_told() {
        let cluster = cluster("prod", None);
        let mut newer = cluster.seal(b"body");
        newer[0] = 2;
        assert_eq!(cluster.open(&newer).unwrap_err().to_string(), "message has version 2, known up to 1");
        let endless = cluster.open(&vec![1; MAX_MESSAGE_LENGTH + 1]).unwrap_err();
        assert_eq!(endless.to_string(), "message is 16777217, the limit is 16777216");
    }

    proptest! {
        #[test]
        fn any_change_of_a_signed_message_is_refused(body: Vec<u8>, at: prop::sample::Index, bit in 0_u8..8) {
            let cluster = cluster("prod", Some(b"secret"));
            let mut message = cluster.seal(&body);
            let at = at.index(message.len());
            message[at] ^= 1 << bit;
            prop_assert!(cluster.open(&message).is_err());
        }

        #[test]
        fn any_bytes_are_opened_or_refused(bytes: Vec<u8>) {
            let _ = cluster("prod", None).open(&bytes);
            let _ = cluster("prod", Some(b"secret")).open(&[&[1, 1][..], &bytes].concat());
        }
    }
}
