package main

import (
	"path/filepath"
	"time"

	"github.com/crid/crid/internal/config"
	"github.com/crid/crid/internal/network"
	"github.com/crid/crid/internal/ns"
	"github.com/crid/crid/internal/storage"
)

// places is the configuration, and where each room keeps what it has by it: for whoever opens the room and for whoever
// only looks.
type places struct{ config.Config }

func (p places) records(kind string) string { return filepath.Join(p.Root, "state", kind) }
func (p places) monitors() string           { return filepath.Join(p.Runroot, "monitor") }
func (p places) exits() string              { return filepath.Join(p.Runroot, "exits") }
func (p places) podFiles() string           { return filepath.Join(p.Runroot, "pods") }
func (p places) pins() string               { return filepath.Join(p.Runroot, "ns") }
func (p places) pinner() *ns.Pinner         { return ns.New(p.Network.NetnsDir, p.pins()) }

func (p places) rootfs(label string) storage.RootfsConfig {
	return storage.RootfsConfig{
		Dir:      filepath.Join(p.Root, "rootfs"),
		MountDir: filepath.Join(p.Runroot, "rootfs"),
		Label:    label,
	}
}

func (p places) images() storage.ImagesConfig {
	return storage.ImagesConfig{
		Root:        p.Root,
		Store:       p.Images.Storage,
		Shelves:     p.Images.AdditionalStores,
		LayerStores: p.Images.LayerStores,
		RunRoot:     p.Runroot,
		Sources:     storage.Sources(p.Images.Sources),
		Trust:       storage.Trust(p.Images.Trust),
		Pinned:      p.Images.Pinned,
		Pulls:       p.pulls(),
	}
}

func (p places) pulls() storage.PullLimits {
	patience, _ := time.ParseDuration(p.Images.Timeout) // checked
	return storage.PullLimits{Patience: patience, Layers: p.Images.Layers, Bandwidth: p.Images.Bandwidth}
}

// gcRhythm is how often the network's garbage is collected. A quiet moment may be rare: it is looked for often.
func (p places) gcRhythm() network.Rhythm {
	period, _ := time.ParseDuration(p.Network.GCPeriod) // checked
	return network.Rhythm{Period: period, Retry: min(period, 10*time.Second)}
}

func (p places) network() network.Config {
	return network.Config{
		ConfDir:  p.Network.ConfDir,
		BinDirs:  p.Network.BinDirs,
		CacheDir: filepath.Join(p.Root, "cni"),
		Default:  p.Network.Default,
	}
}
