# A static binary on nothing: no shell, no libc, no package to patch.
#
#   docker build -t assayd .
#   docker run --rm --read-only --cap-drop=ALL --security-opt no-new-privileges \
#       -v ./assayd.yaml:/etc/assayd/assayd.yaml:ro -v ./monitors:/etc/assayd/monitors:ro -v assayd-state:/var/lib/assayd assayd
#
# For files that change, mount a folder and not one file: a rename on the host does not reach a mount of a single file.

FROM rust:1.95-bookworm AS build
WORKDIR /src
# The C parts (aws-lc, SQLite) need a C compiler, which the image has, and cmake for some architectures.
RUN apt-get update && apt-get install -y --no-install-recommends cmake ca-certificates && rm -rf /var/lib/apt/lists/*
COPY Cargo.toml Cargo.lock ./
COPY benches benches
COPY tests tests
COPY src src
# The gnu target with a static libc. Naming the target keeps the flag away from build scripts and procedural macros,
# which cannot be static. getrandom looks its system call up by name, which a static binary cannot, and would read
# /dev/urandom: it is told to make the call. `scripts/static-build.sh` does the same outside a container.
RUN --mount=type=cache,target=/usr/local/cargo/registry --mount=type=cache,target=/src/target \
    target="$(rustc -vV | sed -n 's/^host: //p')" \
    && RUSTFLAGS='-C target-feature=+crt-static --cfg getrandom_backend="linux_getrandom"' cargo build --release --locked --bin assayd --target "$target" \
    && install -D -m 0755 "target/$target/release/assayd" /root-fs/usr/bin/assayd
# TLS trusts what the certificates here say (rustls-platform-verifier reads the system's bundle; SSL_CERT_FILE names
# another). The folders belong to the user of the final stage, so that a named volume over the state starts out writable.
COPY monitors /root-fs/etc/assayd/monitors
COPY assayd.yaml /root-fs/etc/assayd/assayd.yaml
RUN install -D -m 0644 /etc/ssl/certs/ca-certificates.crt /root-fs/etc/ssl/certs/ca-certificates.crt \
    && install -d -m 0700 -o 65532 -g 65532 /root-fs/var/lib/assayd && install -d -m 1777 /root-fs/tmp

FROM scratch
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="assayd" \
      org.opencontainers.image.description="Tells a team when the answers of their LLM product get worse" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"
COPY --from=build /root-fs/ /
ENV ASSAYD_CONFIG=/etc/assayd/assayd.yaml \
    ASSAYD_STATE=/var/lib/assayd \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt
# A number: Kubernetes' runAsNonRoot cannot check a name.
USER 65532:65532
WORKDIR /var/lib/assayd
VOLUME ["/var/lib/assayd"]
EXPOSE 8484
STOPSIGNAL SIGTERM
# Asks 127.0.0.1 inside the container (at the port of `listen`), so it needs no token and no published port.
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s --retries=3 CMD ["/usr/bin/assayd", "healthcheck"]
ENTRYPOINT ["/usr/bin/assayd"]
CMD ["run"]
