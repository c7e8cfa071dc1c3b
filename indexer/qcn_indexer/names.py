"""Files and folders that are of no use to the model, by their names alone.

What is here was made by a program, copied from elsewhere, or is no text. The lists are short on
purpose: most such things are in `.gitignore` anyway, and a source file that is left out by mistake
is missed by the user, while a useless one that slips through costs a few tokens. So names that are
also ordinary source folders (`build`, `bin`, `out`, `lib`, `target`) are not here.
"""

import re

_VENDORED = {
    "node_modules": "packages of npm",
    "bower_components": "packages of Bower",
    "jspm_packages": "packages of jspm",
    "vendor": "vendored code",
    "vendored": "vendored code",
    "_vendor": "vendored code",
    "third_party": "vendored code",
    "third-party": "vendored code",
    "thirdparty": "vendored code",
    "Pods": "packages of CocoaPods",
    "Carthage": "packages of Carthage",
    "site-packages": "packages of Python",
    ".venv": "a virtual environment",
    "venv": "a virtual environment",
    ".tox": "virtual environments of tox",
    ".nox": "virtual environments of nox",
    "dist": "built files",
    "__pycache__": "compiled Python",
    ".mypy_cache": "a cache",
    ".pytest_cache": "a cache",
    ".ruff_cache": "a cache",
    ".hypothesis": "a cache",
    ".cache": "a cache",
    ".parcel-cache": "a cache",
    ".gradle": "a cache of Gradle",
    ".terraform": "plug-ins of Terraform",
    ".next": "built files of Next.js",
    ".nuxt": "built files of Nuxt",
    ".svelte-kit": "built files of SvelteKit",
    ".yarn": "packages of Yarn",
    ".eggs": "packages of Python",
    ".git": "git's own",
    ".hg": "Mercurial's own",
    ".jj": "Jujutsu's own",
    ".svn": "Subversion's own",
}
# A file that programs put into a folder to say what it is.
MARKERS = {"pyvenv.cfg": "a virtual environment", "CACHEDIR.TAG": "a cache"}

_LOCK_FILES = frozenset(
    {"package-lock.json", "npm-shrinkwrap.json", "pnpm-lock.yaml", "bun.lock", "go.sum"}
    | {"packages.lock.json", "Package.resolved", "gradle.lockfile", "MODULE.bazel.lock"}
    | {"yarn.lock", "Cargo.lock", "poetry.lock", "uv.lock", "pdm.lock", "Pipfile.lock"}
    | {"pixi.lock", "composer.lock", "Gemfile.lock", "Podfile.lock", "mix.lock", "pubspec.lock"}
    | {"flake.lock", "deno.lock", "Cartfile.resolved", "conda-lock.yml", ".terraform.lock.hcl"}
)
_GENERATED = re.compile(
    r".*(?:"
    r"[.-]min\.(?:js|mjs|cjs|css)|\.bundle\.(?:js|css)|\.chunk\.(?:js|css)|\.(?:js|mjs|css)\.map|"
    r"_pb2(?:_grpc)?\.pyi?|\.pb\.(?:go|cc|h|swift|dart)|\.pb\.gw\.go|_grpc\.pb\.(?:go|cc|h)|"
    r"_pb\.(?:js|d\.ts|rb)|\.g\.(?:dart|cs)|\.freezed\.dart|\.designer\.(?:cs|vb)|"
    r"[._-]generated\.[a-z]+|\.gen\.go|\.snap"
    r")",
    re.IGNORECASE,
)
# Only endings that no programming language uses: what else is binary shows it when it is read.
_BINARY = frozenset(
    """
    png jpg jpeg jpe gif bmp ico icns tif tiff webp avif heic heif jxl jp2 psd psb xcf kra sketch
    cr2 nef dng exr hdr dds ktx tga pcx wmf emf
    mp3 mp4 m4a m4v wav flac ogg oga ogv opus aac aiff aif wma mid midi mov avi mkv webm wmv flv
    mpg mpeg 3gp ttf otf woff woff2 eot pfb pfm ttc
    zip gz tgz bz2 tbz xz txz lz lz4 lzma zst 7z rar tar cab cpio rpm deb apk aab ipa dmg iso vhdx
    vmdk qcow2 jar war ear whl egg gem nupkg crate crx xpi vsix appimage msi
    exe dll so dylib a o lib pdb ilk class pyc pyo pyd pyz pex beam wasm dex odex luac rlib rmeta
    gch pch nib swiftmodule swiftdoc spv cubin fatbin
    db sqlite sqlite3 db3 mdb accdb dbf rdb ibd parquet avro feather arrow rds rdata npy npz h5
    hdf5 hdf pkl pickle joblib pt pth ckpt safetensors gguf ggml bin onnx tflite mlmodel tfrecord
    lmdb mdf ldf sas7bdat
    pdf doc docx dotx xls xlsx xlsb xlsm ppt pptx pps odt ods odp odg epub mobi djvu chm dvi xps vsd
    vsdx blend fbx glb 3ds dwg skp unitypackage uasset umap pak swf fla lnk
    """.split()  # noqa: SIM905
)


def unfit_folder(name: str) -> str | None:
    """Return why nothing in a folder of this name is read, or None."""
    if what := _VENDORED.get(name):
        return f"{what} ({name})"
    return f"packages of Python ({name})" if name.endswith(".egg-info") else None


def unfit_file(name: str) -> str | None:
    """Return why a file of this name is not read, or None."""
    if name in _LOCK_FILES:
        return "generated: a lock file"
    if _GENERATED.fullmatch(name):
        return "generated or minified, by its name"
    extension = name.rpartition(".")[2] if "." in name[1:] else ""
    if extension.lower() in _BINARY:
        return f"binary, by its name (.{extension.lower()})"
    return None
