package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync/atomic"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"

	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/internal/fact"
	"github.com/crid/crid/internal/failpoint"
	"github.com/crid/crid/internal/step"
)

// Config says where networks and plugins are found.
type Config struct {
	ConfDir  string     // directory of configuration lists: /etc/cni/net.d
	BinDirs  []string   // searched for plugins in this order
	CacheDir string     // attachments made, kept by libcni; must survive a restart of crid
	Default  string     // name of the network to use; empty means that of the first file in lexicographic order
	Steps    step.Watch // told of verbs and of runs of plugins; nil = nobody
}

// CNI attaches and detaches network namespaces. All methods may be called at the same time.
type CNI struct {
	cfg  Config
	lib  *libcni.CNIConfig
	view atomic.Pointer[view]    // what the configuration directory holds; stored by Watch and its goroutine alone
	gate *gate                   // of ADD and DEL, which GC must not run beside
	up   func(path string) error // brings the loopback of a namespace up
}

// New makes a CNI that knows no network until Watch has read the configuration.
func New(cfg Config) *CNI {
	c := &CNI{
		cfg:  cfg,
		lib:  libcni.NewCNIConfigWithCacheDir(cfg.BinDirs, cfg.CacheDir, &plugins{steps: cfg.Steps}),
		gate: newGate(),
		up:   loopbackUp,
	}
	c.view.Store(&view{problems: []string{"the network configuration was not read yet"}})
	return c
}

// Condition tells whether pods can be attached. It never waits: it answers what Watch last saw. The message
// names unusable files also while the network is ready.
func (c *CNI) Condition() fact.Condition {
	return c.view.Load().condition(c.cfg.ConfDir)
}

// Prepare completes r with today's network: Conflist, and IfName where it is empty. The caller records the
// result before Add. Unavailable: there is no network. Invalid: r cannot be passed to a plugin. Unsupported:
// r has port mappings and no plugin of the network maps ports.
func (c *CNI) Prepare(r Request) (Request, error) {
	v := c.view.Load()
	if v.net == nil {
		return Request{}, fmt.Errorf("network: %s: %w", v.condition(c.cfg.ConfDir).Message, errdef.Unavailable)
	}
	if r.IfName == "" {
		r.IfName = "eth0"
	}
	if err := r.check(); err != nil {
		return Request{}, err
	}
	if len(r.Ports) > 0 && !mapsPorts(v.net.list) {
		return Request{}, fmt.Errorf("host port %d: network %s of %s has no plugin with the capability portMappings, add one of type portmap: %w",
			r.Ports[0].HostPort, v.net.list.Name, v.net.file, errdef.Unsupported)
	}
	r.Conflist = v.net.list.Bytes
	return r, nil
}

// Add brings the loopback interface of r's namespace up and attaches the namespace as r says. After an error
// the caller calls Del with the same r. The error is Unavailable when a plugin failed, and wraps the
// context's when that ended first.
func (c *CNI) Add(ctx context.Context, r Request) (Attachment, error) {
	list, err := r.list()
	if err != nil {
		return Attachment{}, err
	}
	leave, err := c.gate.enter(ctx)
	if err != nil {
		return Attachment{}, fmt.Errorf("attach %s to network %s: %w", r.ID, list.Name, err)
	}
	defer leave()
	if err := c.up(r.NetNS); err != nil {
		return Attachment{}, fmt.Errorf("attach %s to network %s: %w", r.ID, list.Name, err)
	}
	var res types.Result
	err = c.verb(ctx, "ADD", r.ID, func(ctx context.Context) error {
		res, err = c.lib.AddNetworkList(ctx, list, r.runtimeConf())
		return err
	})
	if err != nil {
		return Attachment{}, fmt.Errorf("attach %s to network %s: %w", r.ID, list.Name, pluginFailure(err))
	}
	failpoint.Hit("network/add/remembered")
	ips, err := readResult(res, r.IfName)
	if err != nil {
		return Attachment{}, fmt.Errorf("attach %s to network %s: %w", r.ID, list.Name, err)
	}
	return Attachment{IPs: ips}, nil
}

// verb runs what libcni does for a verb, and tells who watches.
func (c *CNI) verb(ctx context.Context, verb, id string, do func(ctx context.Context) error) error {
	return c.cfg.Steps.Do(ctx, step.Step{Kind: step.CNI, Verb: verb, ID: id}, do)
}

// readResult returns the addresses of the interface, of which there is at least one, or Unavailable.
func readResult(res types.Result, ifName string) ([]string, error) {
	current, err := types100.GetResult(res)
	if err != nil {
		return nil, fmt.Errorf("read its plugins' result: %w: %w", err, errdef.Unavailable)
	}
	ips := addresses(current, ifName)
	if len(ips) == 0 {
		return nil, fmt.Errorf("its plugins gave %s no address, check the ipam section: %w", ifName, errdef.Unavailable)
	}
	return ips, nil
}

// Del undoes Add, with r as it was recorded before it. It may be repeated, may follow a failed Add or none,
// and works when the namespace is gone. Only the plugins know whether anything is left: after an error, call
// again.
func (c *CNI) Del(ctx context.Context, r Request) error {
	if len(r.Conflist) == 0 {
		return nil
	}
	list, err := r.list()
	if err != nil {
		return err
	}
	leave, err := c.gate.enter(ctx)
	if err != nil {
		return fmt.Errorf("detach %s from network %s: %w", r.ID, list.Name, err)
	}
	defer leave()
	return c.del(ctx, list, r)
}

// del is Del behind the gate.
func (c *CNI) del(ctx context.Context, list *libcni.NetworkConfigList, r Request) error {
	rt := r.runtimeConf()
	if !isNetNS(r.NetNS) {
		rt.NetNS = "" // plugins fail at a path that is no namespace, and release all else without one
	}
	err := c.verb(ctx, "DEL", r.ID, func(ctx context.Context) error { return c.lib.DelNetworkList(ctx, list, rt) })
	if err != nil {
		return fmt.Errorf("detach %s from network %s: %w", r.ID, list.Name, pluginFailure(err))
	}
	failpoint.Hit("network/del/forgotten")
	return nil
}

// Check asks the plugins whether the attachment is still as Add made it. A network that disables the check
// is always right; one of a CNI version without it is Unsupported.
func (c *CNI) Check(ctx context.Context, r Request) error {
	list, err := r.list()
	if err != nil {
		return err
	}
	err = c.verb(ctx, "CHECK", r.ID, func(ctx context.Context) error { return c.lib.CheckNetworkList(ctx, list, r.runtimeConf()) })
	if errors.Is(err, libcni.ErrorCheckNotSupp) {
		return fmt.Errorf("check network %s of %s: CNI %s has no CHECK: %w", list.Name, r.ID, list.CNIVersion, errdef.Unsupported)
	}
	if err != nil {
		return fmt.Errorf("check network %s of %s: %w", list.Name, r.ID, pluginFailure(err))
	}
	return nil
}

// Status asks the plugins of today's network whether they can serve an ADD. Networks of a CNI version
// without STATUS only need their plugins to be installed.
func (c *CNI) Status(ctx context.Context) error {
	v := c.view.Load()
	if v.net == nil {
		return fmt.Errorf("network: %s: %w", v.condition(c.cfg.ConfDir).Message, errdef.Unavailable)
	}
	return c.ask(ctx, v.net)
}

func (c *CNI) ask(ctx context.Context, n *network) error {
	if err := n.missing(c.cfg.BinDirs); err != nil {
		return fmt.Errorf("network %s: %w", n.list.Name, err)
	}
	err := c.verb(ctx, "STATUS", "", func(ctx context.Context) error { return c.lib.GetStatusNetworkList(ctx, n.list) })
	if err != nil {
		return fmt.Errorf("network %s: %w", n.list.Name, pluginFailure(err))
	}
	return nil
}

// list parses the recorded conflist.
func (r Request) list() (*libcni.NetworkConfigList, error) {
	list, err := libcni.NetworkConfFromBytes(r.Conflist)
	if err != nil {
		return nil, fmt.Errorf("recorded network of %s: %w: %w", r.ID, err, errdef.Invalid)
	}
	return list, nil
}

// addresses are those of the interface ifName inside the namespace. A plugin may leave the interface of an
// address out; such an address counts. When none matches, those of other interfaces inside count.
func addresses(res *types100.Result, ifName string) []string {
	var own, inside []string
	for _, ip := range res.IPs {
		if ip == nil {
			continue // "null" in the plugin's list
		}
		addr := ip.Address.IP
		if addr == nil || addr.Equal(net.IPv4zero) || addr.Equal(net.IPv6zero) {
			continue
		}
		if ip.Interface == nil || *ip.Interface < 0 || *ip.Interface >= len(res.Interfaces) {
			own = append(own, addr.String())
			continue
		}
		on := res.Interfaces[*ip.Interface]
		switch {
		case on == nil || on.Sandbox == "":
		case on.Name == ifName:
			own = append(own, addr.String())
		default:
			inside = append(inside, addr.String())
		}
	}
	if len(own) == 0 {
		return inside
	}
	return own
}

// recall turns what libcni cached at an Add back into its Request.
func recall(a *libcni.NetworkAttachment) (Request, error) {
	r := Request{ID: a.ContainerID, NetNS: a.NetNS, IfName: a.IfName, Conflist: a.Config, Args: map[string]string{}}
	for _, kv := range a.CniArgs {
		r.Args[kv[0]] = kv[1]
	}
	raw, err := json.Marshal(a.CapabilityArgs)
	if err != nil {
		return Request{}, fmt.Errorf("read cached attachment of %s: %w", a.ContainerID, err)
	}
	var caps capabilities
	if err := json.Unmarshal(raw, &caps); err != nil {
		return Request{}, fmt.Errorf("read cached attachment of %s: %w", a.ContainerID, err)
	}
	r.Ports, r.Cgroup = caps.Ports, caps.Cgroup
	if caps.Bandwidth != nil {
		r.Ingress, r.Egress = caps.Bandwidth.IngressRate, caps.Bandwidth.EgressRate
	}
	return r, nil
}
