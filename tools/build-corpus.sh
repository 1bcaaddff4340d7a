#!/bin/bash
# Real images without a registry: Debian, PyPI and npm packages, built with buildah into the corpus of the benchmarks.
#
#   tools/build-corpus.sh [FOLDER] [IMAGE...]        all 18 images into ./corpus-images by default
#
#   FOLDER/docker-archive/NAME.tar   plain layers         FOLDER/oci/NAME        gzip layers
#   FOLDER/MANIFEST.tsv              layers and sizes     FOLDER/oci/NAME-zstd   of two of them
#
# Needs Debian 12, root, 12 GB, half an hour, and: mmdebstrap buildah skopeo jq libcap2-bin attr. Packages come from the
# mirrors that apt on this machine is set up for. A second run goes on where the first stopped.
#
# What is in it, and why: three bases (bookworm as released, the same with updates, trixie); applications on the released
# and the updated base, so that the same Dockerfile gives layers of which none has the same digest; two versions of
# large packages; other ecosystems; and `torture`, whose layers have every kind of entry that tars and whiteouts know.
set -euo pipefail

folder=$(realpath -m "${1:-corpus-images}")
[ $# -gt 0 ] && shift
work=$folder/work
context=$work/context
recipes=$work/recipes
certificates=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
with_zstd="py-flask py-numpy-b"
order="base-bookworm base-bookworm-upd base-trixie python-bookworm python-bookworm-upd python-trixie
  py-flask py-flask-rebuilt py-numpy-a py-numpy-b py-sklearn nginx nginx-rebuilt redis jre17 postgres node-app torture"

export TMPDIR=$work/tmp BUILDAH_ISOLATION=chroot STORAGE_DRIVER=${STORAGE_DRIVER:-overlay}
storage="--root $work/storage --runroot $work/runroot --storage-driver $STORAGE_DRIVER"

main() {
  local program image
  for program in mmdebstrap buildah skopeo jq setcap setfattr; do
    command -v $program > /dev/null || fail "$program is missing (see the head of $0)"
  done
  [ "$(id -u)" = 0 ] || fail "run it as root: images have files of many owners"
  mkdir -p "$context" "$recipes" "$TMPDIR" "$work/trust" "$folder/oci" "$folder/docker-archive"
  cp "$certificates" "$work/trust/ca.crt"
  # Nothing is fetched from a registry, so there are no signatures to check.
  echo '{"default": [{"type": "insecureAcceptAnything"}]}' > "$work/policy.json"
  write_context
  write_recipes
  for image in ${*:-$order}; do
    [ -f "$recipes/$image" ] || fail "no such image: $image"
    build "$image"
    [ -f "$folder/docker-archive/$image.tar" ] || deliver "$image"
    echo "$(date +%T) $image"
  done
  write_manifest
}

fail() { echo "$0: $*" >&2; exit 1; }

# The mirror that apt uses for a release whose name matches.
mirror() {
  apt-get indextargets --format '$(RELEASE) $(REPO_URI)' 'Created-By: Packages' |
    awk -v name="$1" '$1 ~ name { print $2; exit }'
}

# A base is what debootstrap's minimal variant installs, without the manuals and translations that -slim images lack.
base_tar() { # NAME
  local target=$context/$1.tar suite main security
  [ -f "$target" ] && return
  main=$(mirror '^(bookworm|stable|oldstable)$') security=$(mirror security)
  [ -n "$main" ] || fail "apt knows no mirror of Debian"
  case $1 in *trixie) suite=trixie ;; *) suite=bookworm ;; esac
  {
    echo "deb $main $suite main"
    if [ "$1" != base-bookworm ]; then
      echo "deb $main $suite-updates main"
      echo "deb ${security:-$main-security} $suite-security main"
    fi
  } > "$work/$1.list"
  SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(date +%s)} mmdebstrap --quiet --mode=root --variant=minbase --format=tar \
    --keyring="$keyring" \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/info/*' \
    --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
    --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    "$suite" "$target.part" "$work/$1.list"
  mv "$target.part" "$target"
}

# What a recipe's FROM names is built first.
build() { # IMAGE
  local image=$1 parent
  if buildah $storage inspect --type image "localhost/$image" > /dev/null 2>&1; then return; fi
  case $image in base-*) base_tar "$image" ;; esac
  parent=$(sed -n 's/^FROM localhost\///p' "$recipes/$image")
  if [ -n "$parent" ]; then build "$parent"; fi
  buildah $storage bud --signature-policy "$work/policy.json" --isolation chroot --network host --layers \
    --pull=never --format oci --volume "$work/trust:/run/trust:ro" \
    --file "$recipes/$image" --tag "localhost/$image" "$context" > "$work/$image.log" 2>&1 ||
    { tail -n 20 "$work/$image.log" >&2; fail "$image was not built"; }
}

deliver() { # IMAGE
  local archive=$folder/docker-archive/$1.tar copy="skopeo --policy $work/policy.json copy --quiet"
  local source="containers-storage:[$STORAGE_DRIVER@$work/storage+$work/runroot]localhost/$1:latest"
  rm -rf "$archive".part "$folder/oci/$1" "$folder/oci/$1-zstd"
  $copy "$source" "docker-archive:$archive.part:corpus/$1:latest"
  $copy --dest-compress --dest-compress-format gzip "docker-archive:$archive.part" "oci:$folder/oci/$1:latest"
  case " $with_zstd " in
    *" $1 "*) $copy --dest-compress --dest-compress-format zstd --dest-compress-level 3 \
      "docker-archive:$archive.part" "oci:$folder/oci/$1-zstd:latest" ;;
  esac
  mv "$archive.part" "$archive"
}

write_manifest() {
  local layout digest
  printf 'image\tlayers\tgzip_bytes\n' > "$folder/MANIFEST.tsv"
  for layout in "$folder"/oci/*; do
    case $layout in *-zstd) continue ;; esac
    digest=$(jq -r '.manifests[0].digest' "$layout/index.json")
    jq -r --arg name "$(basename "$layout")" '[$name, (.layers | length), ([.layers[].size] | add)] | @tsv' \
      "$layout/blobs/sha256/${digest#sha256:}" >> "$folder/MANIFEST.tsv"
  done
}

recipe() { cat > "$recipes/$1"; }

# Packages without their lists and archives, as every Dockerfile does it.
install() {
  echo "RUN export DEBIAN_FRONTEND=noninteractive; mkdir -p /usr/share/man/man1; apt-get -q update &&" \
    "apt-get -q -y install --no-install-recommends $* && rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb"
}

write_recipes() {
  local base
  for base in bookworm bookworm-upd trixie; do
    recipe "base-$base" << END
FROM scratch
ADD base-$base.tar /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
CMD ["bash"]
END
    recipe "python-$base" << END
FROM localhost/base-$base
$(install ca-certificates python3 python3-venv)
RUN python3 -m venv /opt/venv
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
CMD ["python3"]
END
  done

  local web="flask==3.0.3 gunicorn==22.0.0 requests==2.32.3"
  python_app py-flask         bookworm     "$web"
  python_app py-flask-rebuilt bookworm-upd "$web"
  python_app py-numpy-a       bookworm     "numpy==1.26.4 pandas==2.1.4"
  python_app py-numpy-b       bookworm     "numpy==2.0.2 pandas==2.2.3"
  python_app py-sklearn       trixie       "flask==3.0.3 scikit-learn"
  nginx_app nginx         bookworm
  nginx_app nginx-rebuilt bookworm-upd

  recipe redis << END
FROM localhost/base-bookworm-upd
$(install redis-server)
CMD ["redis-server", "--protected-mode", "no"]
END
  recipe jre17 << END
FROM localhost/base-bookworm-upd
$(install ca-certificates openjdk-17-jre-headless)
CMD ["java", "-version"]
END
  recipe postgres << END
FROM localhost/base-bookworm
$(install locales)
RUN echo 'en_US.UTF-8 UTF-8' > /etc/locale.gen && locale-gen
$(install ca-certificates postgresql-15)
ENV PATH=/usr/lib/postgresql/15/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
USER postgres
CMD ["postgres"]
END
  recipe node-app << END
FROM localhost/base-bookworm
$(install ca-certificates nodejs npm)
WORKDIR /srv/app
COPY node/package.json ./
RUN NODE_EXTRA_CA_CERTS=/run/trust/ca.crt npm_config_cafile=/run/trust/ca.crt \
    npm install --ignore-scripts --no-audit --no-fund && rm -rf /root/.npm
COPY node/server.js ./
CMD ["node", "server.js"]
END
  recipe torture << END
FROM localhost/base-bookworm
$(install attr iputils-ping libcap2-bin)
COPY torture/ /root/
RUN sh /root/create.sh ${SPARSE_MB:-64}
RUN sh /root/change.sh
RUN sh /root/change-again.sh
CMD ["sh"]
END
}

python_app() { # NAME BASE REQUIREMENTS
  recipe "$1" << END
FROM localhost/python-$2
RUN PIP_CERT=/run/trust/ca.crt /opt/venv/bin/pip install --disable-pip-version-check --no-cache-dir $3
COPY app/ /srv/app/
WORKDIR /srv/app
CMD ["/opt/venv/bin/python3", "app.py"]
END
}

nginx_app() { # NAME BASE
  recipe "$1" << END
FROM localhost/base-$2
$(install ca-certificates curl nginx-light)
RUN for log in access error; do ln -sf /dev/stdout /var/log/nginx/\$log.log; done
COPY page/index.html /var/www/html/
EXPOSE 80
CMD ["nginx", "-g", "daemon off;"]
END
}

write_context() {
  mkdir -p "$context"/{app,node,page,torture}
  echo 'import sys; print("Python", sys.version)' > "$context/app/app.py"
  echo '<title>corpus</title><p>A page.' > "$context/page/index.html"
  echo 'console.log("node", process.version, Object.keys(require("express")).length)' > "$context/node/server.js"
  cat > "$context/node/package.json" << 'END'
{
  "name": "corpus-app", "version": "1.0.0", "private": true,
  "dependencies": {
    "axios": "1.7.2", "express": "4.19.2", "lodash": "4.17.21",
    "moment": "2.30.1", "typescript": "5.4.5", "winston": "3.13.0"
  }
}
END

  # Layer 1 has an entry of every kind.
  cat > "$context/torture/create.sh" << 'END'
set -eu
mkdir /zoo; cd /zoo
mkdir -p tree/inner/leaf opaque gone turns-file empty-folder names
echo one > tree/one; echo two > tree/inner/two; echo three > tree/inner/leaf/three
for n in 1 2 3; do echo $n > opaque/$n; echo $n > gone/$n; done
echo plain > turns-folder; echo inside > turns-file/inside

# Names: other scripts, a line feed, bytes that are not UTF-8, longer than a ustar header can hold.
echo a > 'names/жук-カブトムシ-🪲'
echo b > "$(printf 'names/line\nfeed')"; printf c > "$(printf 'names/caf\351')"
deep=$(head -c 240 /dev/zero | tr '\0' d); mkdir -p "deep/$deep/$deep"; echo far > "deep/$deep/$deep/$deep"

# Links: hard ones across folders, symbolic ones that work, dangle and go round.
head -c 300000 /dev/urandom > link-a; ln link-a link-b; ln link-a tree/link-c
ln -s tree/one to-file; ln -s /no/such/place to-nothing; ln -s . to-itself

# Modes, capabilities, attributes; devices where the builder may make them.
cp /bin/true as-owner; chmod 4755 as-owner; cp /bin/true as-group; chmod 2755 as-group
mkdir sticky; chmod 1777 sticky; echo hidden > unreadable; chmod 000 unreadable
cp /bin/ping raw-ping; setcap cap_net_raw+ep raw-ping
setfattr -n user.text -v value tree/one; setfattr -n user.bytes -v 0x0001feff tree/inner/two
mkfifo pipe; mknod char c 1 5 || true; mknod block b 7 1 || true

# Numbers that do not fit: owners over 2^31, times before 1970 and far ahead, with fractions.
echo x > big-owner; chown 4000000001:4000000002 big-owner; chown 1001:1002 tree/one
touch -d '1969-06-01 00:00:00 UTC' before-epoch; touch -d '@0' at-epoch; touch -d '2098-07-06 05:04:03.123456789 UTC' ahead

# Contents: nothing, zeros, and a sparse file of which tar makes zeros.
: > nothing; head -c 8388608 /dev/zero > zeros
truncate -s "$1"M sparse; printf middle | dd of=sparse bs=1 seek=$(($1 * 500000)) conv=notrunc status=none
END
  # Layer 2: whiteouts, an opaque folder, every change of kind, and changes of metadata alone.
  cat > "$context/torture/change.sh" << 'END'
set -eu
cd /zoo
rm tree/one; rm -r gone tree/inner/leaf
rm -r opaque; mkdir opaque; echo fresh > opaque/fresh
rm turns-folder; mkdir turns-folder; echo new > turns-folder/new
rm -r turns-file; echo new > turns-file
rm to-file; mkdir to-file; echo real > to-file/real
rm link-b; echo more >> link-a
chmod 0755 as-owner; setcap -r raw-ping; setfattr -n user.late -v yes tree/inner/two
printf changed | dd of=zeros bs=1 seek=5000000 conv=notrunc status=none
rm pipe; rm -f /usr/bin/getfattr
END
  # Layer 3: what was removed comes back as something else; many small files; a whiteout with a line feed in its name.
  cat > "$context/torture/change-again.sh" << 'END'
set -eu
cd /zoo
rm -r opaque; echo now a file > opaque
mkdir gone; echo back > gone/1
mkdir crowd; for n in $(seq 3000); do echo "member $n" > crowd/$n; done; ln crowd/1 crowd/one
rm "$(printf 'names/line\nfeed')"; mv deep moved
END
}

main "$@"
