//! From settings to a bucket.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, S3ConditionalPut};
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::{BackoffConfig, ClientOptions, RetryConfig};
use skald_tsdb::disk::Disk;

use super::config::{Backend, BucketLookup, Config};
use super::stores::ConditionalUpdate;
use super::{ObjectStoreBucket, valid_key};

/// Settings from which no bucket can be made; the text names the setting.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub struct OpenError(String);

fn fail<T>(text: impl Into<String>) -> Result<T, OpenError> {
    Err(OpenError(text.into()))
}

/// Makes the bucket that `config` describes. Contacts nobody, except that a local directory is created.
///
/// `data_dir` is where the directory lies when `config` does not name one. For the other kinds the process gets a TLS
/// provider, unless it has chosen one before.
pub fn open(config: &Config, data_dir: &Path, disk: &dyn Disk) -> Result<ObjectStoreBucket, OpenError> {
    let prefix = config.storage_prefix.as_str();
    if !prefix.is_empty() && !valid_key(prefix) {
        return fail(format!("blocks_storage.storage_prefix: {prefix:?} is not a valid prefix"));
    }
    if config.backend != Backend::Filesystem {
        // An error means that there is one already.
        let _ = rustls::crypto::ring::default_provider().install_default();
    }
    match config.backend {
        Backend::Filesystem => open_directory(config, data_dir, disk),
        Backend::S3 => open_s3(config),
        Backend::Gcs => open_gcs(config),
        Backend::Azure => open_azure(config),
    }
}

fn open_directory(config: &Config, data_dir: &Path, disk: &dyn Disk) -> Result<ObjectStoreBucket, OpenError> {
    let dir = match &config.filesystem.dir {
        Some(dir) => dir.clone(),
        None => data_dir.join("blocks"),
    };
    let failed = |e: &dyn std::fmt::Display| {
        OpenError(format!("blocks_storage.filesystem.dir: cannot use {}: {e}", dir.display()))
    };
    disk.create_dir_all(&dir).map_err(|e| failed(&e))?;
    // Without the automatic clean-up, deleted blocks would stay behind as empty directories.
    let store =
        LocalFileSystem::new_with_prefix(&dir).map_err(|e| failed(&e))?.with_fsync(true).with_automatic_cleanup(true);
    let name = format!("file://{}", dir.display());
    Ok(ObjectStoreBucket::of_directory(name, store, &config.storage_prefix))
}

fn retries(config: &Config) -> RetryConfig {
    RetryConfig {
        max_retries: config.max_retries,
        // Enough for every try to time out; credentials outlive it.
        retry_timeout: config.request_timeout.saturating_mul(2).min(Duration::from_secs(240)),
        backoff: BackoffConfig {
            init_backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(5),
            base: 2.0,
        },
    }
}

fn client(config: &Config, allow_http: bool) -> ClientOptions {
    ClientOptions::new()
        .with_timeout(config.request_timeout)
        .with_connect_timeout(config.connect_timeout)
        .with_allow_http(allow_http)
}

fn required<'a>(value: &'a str, setting: &str) -> Result<&'a str, OpenError> {
    if value.is_empty() {
        return fail(format!("blocks_storage.{setting}: must be set for this backend"));
    }
    Ok(value)
}

/// The URL of an S3 endpoint given as `host`, `host:port` or a URL.
fn endpoint_url(endpoint: &str, insecure: bool) -> Result<String, OpenError> {
    let endpoint = endpoint.trim_end_matches('/');
    match endpoint.split_once("://") {
        None if insecure => Ok(format!("http://{endpoint}")),
        None => Ok(format!("https://{endpoint}")),
        Some(("https", _)) => Ok(endpoint.to_owned()),
        Some(("http", _)) if insecure => Ok(endpoint.to_owned()),
        Some(("http", _)) => fail(format!(
            "blocks_storage.s3.endpoint: {endpoint} is not encrypted; set blocks_storage.s3.insecure if that is meant"
        )),
        Some(_) => fail(format!("blocks_storage.s3.endpoint: {endpoint} is neither http nor https")),
    }
}

fn open_s3(config: &Config) -> Result<ObjectStoreBucket, OpenError> {
    let s3 = &config.s3;
    let bucket = required(&s3.bucket_name, "s3.bucket_name")?;
    if s3.access_key_id.is_empty() != s3.secret_access_key.is_empty() {
        return fail("blocks_storage.s3: access_key_id and secret_access_key must be set together");
    }
    // From the environment: a role's credentials (instance, container, web identity) when no key is set here.
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_retry(retries(config))
        .with_client_options(client(config, s3.insecure))
        .with_conditional_put(S3ConditionalPut::ETagMatch);
    if !s3.region.is_empty() {
        builder = builder.with_region(&s3.region);
    }
    if !s3.access_key_id.is_empty() {
        builder = builder.with_access_key_id(&s3.access_key_id).with_secret_access_key(s3.secret_access_key.expose());
        if !s3.session_token.is_empty() {
            builder = builder.with_token(s3.session_token.expose());
        }
    }
    // `auto`: a named endpoint is somebody's own server, which rarely has a host name per bucket.
    let virtual_hosted = match s3.bucket_lookup_type {
        BucketLookup::Auto => s3.endpoint.is_empty(),
        BucketLookup::Path => false,
        BucketLookup::VirtualHosted => true,
    };
    builder = builder.with_virtual_hosted_style_request(virtual_hosted);
    if !s3.endpoint.is_empty() {
        let mut url = endpoint_url(&s3.endpoint, s3.insecure)?;
        if virtual_hosted && let Some((scheme, host)) = url.split_once("://") {
            // The client takes the endpoint of this style with the bucket already in it.
            url = format!("{scheme}://{bucket}.{host}");
        }
        builder = builder.with_endpoint(url);
    }
    let store = builder.build().map_err(|e| OpenError(format!("blocks_storage.s3: {e}")))?;
    let name = format!("s3://{bucket}");
    Ok(ObjectStoreBucket::new(name, Arc::new(store), &config.storage_prefix, ConditionalUpdate::Store))
}

fn open_gcs(config: &Config) -> Result<ObjectStoreBucket, OpenError> {
    let gcs = &config.gcs;
    let bucket = required(&gcs.bucket_name, "gcs.bucket_name")?;
    let mut builder = GoogleCloudStorageBuilder::from_env()
        .with_bucket_name(bucket)
        .with_retry(retries(config))
        .with_client_options(client(config, false));
    if !gcs.service_account.is_empty() {
        builder = builder.with_service_account_key(gcs.service_account.expose());
    }
    let store = builder.build().map_err(|e| OpenError(format!("blocks_storage.gcs: {e}")))?;
    let name = format!("gs://{bucket}");
    Ok(ObjectStoreBucket::new(name, Arc::new(store), &config.storage_prefix, ConditionalUpdate::Store))
}

fn open_azure(config: &Config) -> Result<ObjectStoreBucket, OpenError> {
    let azure = &config.azure;
    let container = required(&azure.container_name, "azure.container_name")?;
    let account = required(&azure.account_name, "azure.account_name")?;
    let mut builder = MicrosoftAzureBuilder::from_env()
        .with_container_name(container)
        .with_account(account)
        .with_retry(retries(config))
        .with_client_options(client(config, azure.insecure));
    if !azure.account_key.is_empty() {
        builder = builder.with_access_key(azure.account_key.expose());
    }
    if !azure.endpoint.is_empty() {
        builder = builder.with_endpoint(azure.endpoint.clone());
    }
    let store = builder.build().map_err(|e| OpenError(format!("blocks_storage.azure: {e}")))?;
    let name = format!("azure://{account}/{container}");
    Ok(ObjectStoreBucket::new(name, Arc::new(store), &config.storage_prefix, ConditionalUpdate::Store))
}
