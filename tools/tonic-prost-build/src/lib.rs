//! The part of `tonic-prost-build` that `cdk-signatory`'s build script calls,
//! with `protox` (Rust) in the place of `protoc`, a program that a machine with
//! only Rust and a C compiler lacks. The root manifest patches it in; it can go
//! when cdk's `mint` feature no longer insists on gRPC.

use std::io;
use std::path::Path;

use prost_build::{Config, Service, ServiceGenerator};
use tonic_build::{CodeGenBuilder, manual};

/// Collects what the build script asks for.
#[derive(Debug, Default)]
pub struct Builder {
    config: Config,
}

/// Starts a build.
pub fn configure() -> Builder {
    Builder::default()
}

impl Builder {
    /// Ignored: protox knows optional fields without being told.
    pub fn protoc_arg(self, _arg: impl AsRef<str>) -> Self {
        self
    }

    /// Puts `attribute` on the types that match `path`.
    pub fn type_attribute(mut self, path: impl AsRef<str>, attribute: impl AsRef<str>) -> Self {
        self.config.type_attribute(path, attribute);
        self
    }

    /// Puts `attribute` on the fields that match `path`.
    pub fn field_attribute(mut self, path: impl AsRef<str>, attribute: impl AsRef<str>) -> Self {
        self.config.field_attribute(path, attribute);
        self
    }

    /// Writes the Rust code of `protos` to the build script's output folder.
    pub fn compile_protos<P: AsRef<Path>>(mut self, protos: &[P], includes: &[P]) -> io::Result<()> {
        let files = protox::compile(protos, includes).map_err(io::Error::other)?;
        self.config.service_generator(Box::new(Grpc)).compile_fds(files)
    }
}

/// Generates a tonic client and server for each service.
struct Grpc;

impl ServiceGenerator for Grpc {
    fn generate(&mut self, service: Service, code: &mut String) {
        let mut builder = manual::Service::builder().name(service.name).package(service.package);
        for method in service.methods {
            let mut rpc = manual::Method::builder()
                .name(method.name)
                .route_name(method.proto_name)
                .input_type(format!("super::{}", method.input_type))
                .output_type(format!("super::{}", method.output_type))
                .codec_path("tonic_prost::ProstCodec");
            if method.client_streaming {
                rpc = rpc.client_streaming();
            }
            if method.server_streaming {
                rpc = rpc.server_streaming();
            }
            builder = builder.method(rpc.build());
        }
        let service = builder.build();
        let mut generator = CodeGenBuilder::new();
        generator.emit_package(true).build_transport(true);
        for tokens in [
            generator.generate_client(&service, "super"),
            generator.generate_server(&service, "super"),
        ] {
            let file = syn::parse2(tokens).expect("tonic-build emits valid Rust");
            code.push_str(&prettyplease::unparse(&file));
        }
    }
}
