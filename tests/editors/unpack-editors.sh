#!/bin/sh
# Unpack Neovim, Helix and Emacs of Debian's newest suite beside the system: unpack-editors.sh DIR
#
# Nothing is installed and no root is needed. The packages come from the mirror that this system's
# apt uses, signatures checked. Each program is started by the dynamic loader and libraries it
# came with, through DIR/bin; what it starts in turn uses the system's.
set -eu
umask 022
folder=$(realpath -m "$1")
suite=sid
if [ "$(cat "$folder/complete" 2>/dev/null)" = "$suite" ]; then exit 0; fi
command -v apt-get >/dev/null || { echo "unpack-editors: needs Debian's apt-get" >&2; exit 1; }
mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Origin: Debian' | grep '/debian/$' | head -n 1)
[ -n "$mirror" ] || { echo "unpack-editors: no Debian mirror in apt's sources" >&2; exit 1; }

rm -rf "$folder"
apt=$folder/apt root=$folder/root
mkdir -p "$apt/lists/partial" "$apt/archives/partial" "$root" "$folder/bin"
: > "$apt/status"
echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror $suite main" > "$apt/sources.list"
ask() { # a mirror may lag behind by more than the suite's lists are valid for
    apt-get -qq -o Dir::State::lists="$apt/lists" -o Dir::State::status="$apt/status" \
        -o Dir::Cache="$apt" -o Dir::Etc::sourcelist="$apt/sources.list" \
        -o Dir::Etc::sourceparts=/dev/null -o Debug::NoLocking=true -o APT::Sandbox::User= \
        -o APT::Install-Recommends=false -o Acquire::Check-Valid-Until=false "$@"
}
ask update
ask install --yes --download-only neovim hx emacs-nox >/dev/null
for package in "$apt"/archives/*.deb; do
    dpkg-deb --fsys-tarfile "$package" | tar -x -C "$root" --keep-directory-symlink
done
rm -rf "$apt"

[ -e "$root/lib64" ] || ln -s usr/lib64 "$root/lib64"
# Neovim looks for its parsers beside its own program, which here is the loader.
ln -s ../../../lib/nvim/parser "$root/usr/share/nvim/runtime/parser"
wrap() { # NAME ENVIRONMENT PROGRAM [ARGUMENT]
    loader=$(echo "$root"/lib64/ld-linux-*.so.*) libraries=$(echo "$root"/usr/lib/*-linux-gnu)
    printf '#!/bin/sh\nexec env %s %s --library-path %s %s %s "$@"\n' \
        "$2" "'$loader'" "'$libraries'" "'$root/usr/bin/$3'" "${4:-}" > "$folder/bin/$1"
    chmod 755 "$folder/bin/$1"
}
emacs=$(echo "$root"/usr/share/emacs/[0-9]*)
wrap nvim "VIMRUNTIME='$root/usr/share/nvim/runtime'" nvim
wrap hx "HELIX_RUNTIME='$root/usr/lib/hx/runtime'" hx
wrap emacs "EMACSLOADPATH='$emacs/lisp' EMACSDATA='$emacs/etc'" emacs-nox \
    "--dump-file='$(echo "$root"/usr/libexec/emacs/*/*/emacs-*.pdmp)'"
for program in nvim hx emacs; do "$folder/bin/$program" --version | head -n 1; done
echo "$suite" > "$folder/complete"
