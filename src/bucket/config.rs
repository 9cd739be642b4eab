//! Settings of the object storage that holds the blocks.

use std::path::PathBuf;
use std::time::Duration;

use super::index_cache::BucketIndexConfig;
use crate::settings::{Secret, setting_enum, settings};

setting_enum! {
    /// Kinds of object storage.
    pub enum Backend {
        /// A local directory.
        Filesystem = "filesystem",
        /// Amazon S3, or any store that speaks its protocol.
        S3 = "s3",
        /// Google Cloud Storage.
        Gcs = "gcs",
        /// Azure Blob Storage.
        Azure = "azure",
    }
}

setting_enum! {
    /// Where an S3 request names its bucket.
    pub enum BucketLookup {
        /// In the host name at Amazon; in the path when an endpoint is set.
        Auto = "auto",
        /// In the path: `https://endpoint/bucket/key`.
        Path = "path",
        /// In the host name: `https://bucket.endpoint/key`.
        VirtualHosted = "virtual-hosted",
    }
}

settings! {
    /// Object storage that holds the blocks of all tenants. Every process of a cluster uses the same.
    pub struct Config {
        /// Which kind of object storage it is. A local directory is for one machine.
        pub backend: Backend = Backend::Filesystem,
        /// Everything is kept below this prefix, so that one bucket can serve several clusters. Without a leading or
        /// trailing `/`.
        pub storage_prefix: String = String::new(),
        /// Longest time of one try of a request to S3, GCS or Azure, its body included. Smaller fails faster when the
        /// store hangs; larger is needed where an upload of 8 MiB takes long.
        pub request_timeout: Duration = Duration::from_secs(30),
        /// Longest time to connect to S3, GCS or Azure.
        pub connect_timeout: Duration = Duration::from_secs(5),
        /// How often a request to S3, GCS or Azure is repeated after an error of the server or the network, with growing
        /// pauses. 0 never repeats.
        pub max_retries: usize = 5 => 0..=100,
        /// The local directory.
        pub filesystem: FilesystemConfig,
        /// Amazon S3 and compatible stores.
        pub s3: S3Config,
        /// Google Cloud Storage.
        pub gcs: GcsConfig,
        /// Azure Blob Storage.
        pub azure: AzureConfig,
        /// The lists of blocks.
        pub bucket_index: BucketIndexConfig,
    }
}

settings! {
    /// Used when the backend is `filesystem`.
    pub struct FilesystemConfig {
        /// The directory, created when missing. `none` is `blocks` inside the data directory.
        pub dir: Option<PathBuf> = None,
    }
}

settings! {
    /// Used when the backend is `s3`.
    pub struct S3Config {
        /// Host, `host:port` or URL of a store that is not Amazon's. Empty means Amazon's, by region.
        pub endpoint: String = String::new(),
        /// Region; empty takes it from the environment (`AWS_REGION`), else `us-east-1`.
        pub region: String = String::new(),
        /// The bucket.
        pub bucket_name: String = String::new(),
        /// Access key. Empty takes credentials from the environment or the instance's role.
        pub access_key_id: String = String::new(),
        /// Secret of the access key.
        pub secret_access_key: Secret = Secret::default(),
        /// Session token, for temporary keys.
        pub session_token: Secret = Secret::default(),
        /// Talks to the endpoint without TLS.
        pub insecure: bool = false,
        /// Where requests name the bucket.
        pub bucket_lookup_type: BucketLookup = BucketLookup::Auto,
    }
}

settings! {
    /// Used when the backend is `gcs`.
    pub struct GcsConfig {
        /// The bucket.
        pub bucket_name: String = String::new(),
        /// Contents of a service account's JSON file. Empty takes credentials from the environment or the instance.
        pub service_account: Secret = Secret::default(),
    }
}

settings! {
    /// Used when the backend is `azure`.
    pub struct AzureConfig {
        /// The container.
        pub container_name: String = String::new(),
        /// The storage account.
        pub account_name: String = String::new(),
        /// Key of the account. Empty takes credentials from the environment or the instance's identity.
        pub account_key: Secret = Secret::default(),
        /// URL of an endpoint that is not Azure's public one. Empty means the public one.
        pub endpoint: String = String::new(),
        /// Allows an endpoint without TLS.
        pub insecure: bool = false,
    }
}
