//! The one TLS implementation of the process, rustls with ring. Kafka's client alone has its own: librdkafka uses OpenSSL.

use std::path::{Path, PathBuf};

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::ConfigVerifierExt as _;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path} gives no certificates to trust: {detail}")]
    Certificates { path: PathBuf, detail: String },
    #[error("the system gives no certificates to trust (Debian has them in ca-certificates): {0}")]
    System(rustls::Error),
}

/// Makes ring the process's provider of cryptography; later calls change nothing.
pub fn install_provider() {
    // An error only says that a provider is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// A client that trusts the certificates of `ca_file` (PEM) and no others, or without a file those of the system.
pub fn client(ca_file: Option<&Path>) -> Result<ClientConfig, Error> {
    install_provider();
    let Some(path) = ca_file else { return ClientConfig::with_platform_verifier().map_err(Error::System) };
    let failed = |detail: String| Error::Certificates { path: path.to_owned(), detail };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|e| failed(e.to_string()))? {
        let certificate = certificate.map_err(|e| failed(e.to_string()))?;
        roots.add(certificate).map_err(|e| failed(e.to_string()))?;
    }
    if roots.is_empty() {
        return Err(failed("there is none in PEM format in it".to_owned()));
    }
    Ok(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}

/// Whether a connection failed because the other side's certificate is not trusted, which waiting does not change.
pub fn is_distrust(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(rustls::Error::InvalidCertificate(_)) = cause.downcast_ref() {
            return true;
        }
        // An I/O error does not count what it wraps among its sources.
        next = match cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(wrapped) => Some(wrapped),
            None => cause.source(),
        };
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distrust_is_found_beneath_what_wraps_it() {
        let wrapped = |error: rustls::Error| std::io::Error::other(std::io::Error::other(error));
        assert!(is_distrust(&wrapped(rustls::CertificateError::UnknownIssuer.into())));
        assert!(!is_distrust(&wrapped(rustls::Error::HandshakeNotComplete)));
    }

    #[test]
    fn a_file_without_certificates_is_refused_by_name() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for content in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            std::fs::write(file.path(), content).unwrap();
            let error = client(Some(file.path())).unwrap_err().to_string();
            assert!(error.starts_with(&file.path().display().to_string()), "{error}");
        }
        assert!(client(None).is_ok());
    }
}
