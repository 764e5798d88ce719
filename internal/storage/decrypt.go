package storage

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	encryption "github.com/containers/ocicrypt/config"
	encutils "github.com/containers/ocicrypt/utils"
	"go.podman.io/image/v5/types"

	"github.com/crid/crid/internal/errdef"
)

// isEncrypted tells whether one of the layers needs a key. Such an image is brought by the library, which stores what it has decrypted,
// with a manifest that says so.
func isEncrypted(img types.Image) bool {
	return slices.ContainsFunc(img.LayerInfos(), func(l types.BlobInfo) bool { return strings.HasSuffix(l.MediaType, "+encrypted") })
}

// decryption reads the node's keys, as they are today. What is in the directory and is no key is refused: it may be one that an image
// cannot be read without.
func (s *Images) decryption() (*encryption.DecryptConfig, error) {
	dir := s.cfg.DecryptionKeys
	if dir == "" {
		return nil, fmt.Errorf("its layers are encrypted, and crid has no keys (decryption_keys_path): %w", errdef.Invalid)
	}
	names, err := entryNames(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read keys: %w", err)
	}
	slices.Sort(names)
	var keys [][]byte
	for _, name := range names {
		file := filepath.Join(dir, name)
		raw, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("read key: %w", err)
		}
		if ok, _ := encutils.IsPrivateKey(raw, nil); !ok { // its error quotes the contents
			return nil, fmt.Errorf("read key %s: it is no private key without a password (PEM or DER): %w", file, errdef.Invalid)
		}
		keys = append(keys, raw)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("its layers are encrypted, and there is no key in %s: %w", dir, errdef.Invalid)
	}
	config, err := encryption.DecryptWithPrivKeys(keys, make([][]byte, len(keys)))
	if err != nil {
		return nil, fmt.Errorf("use keys of %s: %w", dir, err)
	}
	return config.DecryptConfig, nil
}
