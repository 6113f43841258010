//! Encrypted connections. The certificate and its key come from PEM files and are read again when these change, so that
//! renewing them needs no restart.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{self, ServerConfig};
use tokio_rustls::server::TlsStream;

/// Where a server's certificate is; neither file: connections are not encrypted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// The certificate, followed by those between it and its root, in PEM.
    pub certificate: Option<PathBuf>,
    /// Its private key in PEM.
    pub key: Option<PathBuf>,
}

/// A certificate that cannot be used.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TlsError {
    #[error("tls.certificate and tls.key go together: set both or neither")]
    Half,
    #[error("tls: cannot read {}: {source}; it must be a file in PEM", path.display())]
    File { path: PathBuf, source: pem::Error },
    #[error("tls: there is no certificate in {}", path.display())]
    Empty { path: PathBuf },
    #[error("tls: the certificate and its key cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
}

impl TlsConfig {
    /// What these settings ask for.
    pub(crate) fn open(&self) -> Result<Option<Tls>, TlsError> {
        match (&self.certificate, &self.key) {
            (None, None) => Ok(None),
            (Some(certificate), Some(key)) => Tls::new(certificate, key).map(Some),
            _ => Err(TlsError::Half),
        }
    }

    /// Whether anything is set.
    pub(crate) fn is_set(&self) -> bool {
        self.certificate.is_some() || self.key.is_some()
    }
}

/// The server's side of encrypted connections. Clones share the certificate.
#[derive(Clone)]
pub struct Tls {
    acceptor: TlsAcceptor,
}

impl Tls {
    fn new(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let files = Files {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
        };
        let read_at = files.changed();
        let current = Current {
            key: Arc::new(files.read(&provider)?),
            read_at,
        };
        let mut config = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(Renewable {
                files,
                provider,
                current: Mutex::new(current),
            }));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
        })
    }

    pub(crate) async fn accept<S>(&self, stream: S) -> io::Result<TlsStream<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        self.acceptor.accept(stream).await
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tls")
    }
}

#[derive(Debug)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

/// When the two files were last changed; none where that cannot be told.
type Changed = [Option<SystemTime>; 2];

impl Files {
    fn changed(&self) -> Changed {
        [&self.certificate, &self.key]
            .map(|path| fs::metadata(path).and_then(|file| file.modified()).ok())
    }

    fn read(&self, provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            |source| TlsError::File { path, source }
        };
        let chain = CertificateDer::pem_file_iter(&self.certificate)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(failed(&self.certificate))?;
        if chain.is_empty() {
            let path = self.certificate.clone();
            return Err(TlsError::Empty { path });
        }
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(failed(&self.key))?;
        Ok(CertifiedKey::from_der(chain, key, provider)?)
    }
}

/// The certificate as it stands in its files now, or as it last could be read.
#[derive(Debug)]
struct Renewable {
    files: Files,
    provider: Arc<CryptoProvider>,
    current: Mutex<Current>,
}

#[derive(Debug)]
struct Current {
    key: Arc<CertifiedKey>,
    /// As the files were when they were last read, or tried.
    read_at: Changed,
}

impl ResolvesServerCert for Renewable {
    // Two files are looked at for each connection. Who scrapes makes few.
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let mut current = self.current.lock();
        let changed = self.files.changed();
        if changed != current.read_at {
            current.read_at = changed;
            match self.files.read(&self.provider) {
                Ok(key) => current.key = Arc::new(key),
                // Perhaps one of the two is still to be written.
                Err(error) => {
                    tracing::warn!(%error, "the certificate changed and cannot be read; the one before stays");
                }
            }
        }
        Some(Arc::clone(&current.key))
    }
}
