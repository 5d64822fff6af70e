//! TLS as a connection string asks for it (`sslmode`), by rustls where the feature `postgres-rustls` is on.
//!
//! Must not know what is done with a connection.

use std::sync::Arc;

use tokio_postgres::config::SslMode;
use tokio_postgres::{Config, NoTls};

use super::error::PostgresError;
use super::session::{ByConfig, Connect, Guard, Never};

/// What makes connections by a configuration, which are guarded where that is asked for.
pub(super) fn by_config(config: Config, guard: Option<Guard>) -> Result<Arc<dyn Connect>, PostgresError> {
    if config.get_ssl_mode() == SslMode::Disable {
        return Ok(Arc::new(ByConfig::new(config, NoTls, guard)));
    }
    secured(config, guard)
}

/// The same, where what asks for TLS and can't have it is told so when it connects.
pub(super) fn by_config_or_never(config: Config, guard: Option<Guard>) -> Arc<dyn Connect> {
    by_config(config, guard).unwrap_or_else(|error| Arc::new(Never(error)))
}

/// With these root certificates, as PEM, and TLS only.
#[cfg(feature = "postgres-rustls")]
pub(super) fn by_roots(
    pem: &[u8],
) -> Result<impl FnOnce(Config, Option<Guard>) -> Arc<dyn Connect> + Send + use<>, PostgresError> {
    let tls = by_rustls::given(pem)?;
    Ok(|mut config: Config, guard| -> Arc<dyn Connect> {
        config.ssl_mode(SslMode::Require);
        Arc::new(ByConfig::new(config, tls, guard))
    })
}

#[cfg(not(feature = "postgres-rustls"))]
fn secured(config: Config, guard: Option<Guard>) -> Result<Arc<dyn Connect>, PostgresError> {
    // To prefer it is content without.
    if config.get_ssl_mode() == SslMode::Prefer {
        return Ok(Arc::new(ByConfig::new(config, NoTls, guard)));
    }
    Err(PostgresError::Tls(
        "the connection asks for it (sslmode=require), and this program is built without: enable the feature \
         `postgres-rustls`, or give a connector of your own (PostgresBuilder::tls)"
            .to_owned(),
    ))
}

#[cfg(feature = "postgres-rustls")]
fn secured(config: Config, guard: Option<Guard>) -> Result<Arc<dyn Connect>, PostgresError> {
    let tls = match config.get_ssl_mode() {
        SslMode::Prefer => by_rustls::unverified()?,
        _ => by_rustls::native()?,
    };
    Ok(Arc::new(ByConfig::new(config, tls, guard)))
}

#[cfg(feature = "postgres-rustls")]
mod by_rustls {
    use std::error::Error;
    use std::sync::Arc;

    use rustls::client::WantsClientCert;
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
    use rustls::{ClientConfig, ConfigBuilder, DigitallySignedStruct, RootCertStore, SignatureScheme, WantsVerifier};
    use tokio_postgres_rustls::MakeRustlsConnect;

    use crate::postgres::error::PostgresError;

    /// The protocol's name in the handshake, which servers need where it comes first (`sslnegotiation=direct`)
    /// (<https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-SSL>).
    const ALPN: &[u8] = b"postgresql";

    /// Servers whose certificates the machine trusts.
    pub(super) fn native() -> Result<MakeRustlsConnect, PostgresError> {
        let found = rustls_native_certs::load_native_certs();
        let mut roots = RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(found.certs);
        if added == 0 {
            let why = found.errors.first().map_or_else(String::new, |error| format!(" ({error})"));
            return Err(PostgresError::Tls(format!(
                "this machine has no root certificates{why}; install them (ca-certificates), name some in the environment \
                 variable SSL_CERT_FILE, or give some (PostgresBuilder::root_certificates)"
            )));
        }
        verified(roots)
    }

    /// Servers whose certificates lead to one of these, as PEM.
    pub(super) fn given(pem: &[u8]) -> Result<MakeRustlsConnect, PostgresError> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem) {
            let certificate = certificate.map_err(|error| unusable("a root certificate is no PEM", &error))?;
            roots.add(certificate).map_err(|error| unusable("a root certificate can't be used", &error))?;
        }
        if roots.is_empty() {
            return Err(PostgresError::Tls("there is no certificate among the root certificates".to_owned()));
        }
        verified(roots)
    }

    /// Whatever server answers. Somebody in between can keep a client that only prefers TLS from using it at all, so that it would
    /// prove nothing to look at the certificate.
    pub(super) fn unverified() -> Result<MakeRustlsConnect, PostgresError> {
        let provider = provider();
        let any = Arc::new(AnyServer(provider.clone()));
        Ok(connector(builder(provider)?.dangerous().with_custom_certificate_verifier(any)))
    }

    fn verified(roots: RootCertStore) -> Result<MakeRustlsConnect, PostgresError> {
        Ok(connector(builder(provider())?.with_root_certificates(roots)))
    }

    /// Ours, whatever the process has chosen: two crates that choose would be in each other's way.
    fn provider() -> Arc<CryptoProvider> {
        Arc::new(rustls::crypto::ring::default_provider())
    }

    fn builder(provider: Arc<CryptoProvider>) -> Result<ConfigBuilder<ClientConfig, WantsVerifier>, PostgresError> {
        let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        builder.map_err(|error| unusable("rustls", &error))
    }

    fn connector(builder: ConfigBuilder<ClientConfig, WantsClientCert>) -> MakeRustlsConnect {
        let mut config = builder.with_no_client_auth();
        config.alpn_protocols = vec![ALPN.to_vec()];
        MakeRustlsConnect::new(config)
    }

    fn unusable(what: &str, error: &dyn Error) -> PostgresError {
        PostgresError::Tls(format!("{what}: {error}"))
    }

    /// Believes every certificate, but not a handshake that its owner did not sign.
    #[derive(Debug)]
    struct AnyServer(Arc<CryptoProvider>);

    impl ServerCertVerifier for AnyServer {
        fn verify_server_cert(
            &self,
            _end_entity: &CertificateDer<'_>,
            _intermediates: &[CertificateDer<'_>],
            _server_name: &ServerName<'_>,
            _ocsp_response: &[u8],
            _now: UnixTime,
        ) -> Result<ServerCertVerified, rustls::Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.0.signature_verification_algorithms.supported_schemes()
        }
    }
}
