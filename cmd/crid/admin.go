package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/crid/crid/internal/admin"
	"github.com/crid/crid/internal/errdef"
	"github.com/crid/crid/server"
)

// maxAnswer is more than a crid sends at a time, in bytes.
const maxAnswer = 65 << 20

// client is the crid that runs, as the commands of this program talk to it: by its own calls beside the CRI.
type client struct {
	admin.AdminClient
	conn   *grpc.ClientConn
	socket string
}

// dial makes a client; nothing is said yet.
func dial(socket string) (*client, error) {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)))
	if err != nil {
		return nil, fmt.Errorf("socket %s: %w", socket, err)
	}
	return &client{admin.NewAdminClient(conn), conn, socket}, nil
}

func (c *client) close() error { return c.conn.Close() }

// told is an error of a call for whoever typed the command.
func (c *client) told(err error) error {
	err = server.Told(err)
	if errors.Is(err, errdef.Unavailable) && c.conn.GetState().String() != "READY" {
		return fmt.Errorf("no crid answers at %s: %w (is it running? systemctl status crid; --socket names another)", c.socket, err)
	}
	return err
}

// askFsck asks the crid that runs. Unavailable: nobody serves the socket.
func askFsck(ctx context.Context, socket string, ask fsckRequest) (_ fsckReport, err error) {
	c, err := dial(socket)
	if err != nil {
		return fsckReport{}, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	answer, err := c.Fsck(ctx, &admin.FsckRequest{Repair: ask.Repair, Contents: ask.Contents})
	if err != nil {
		return fsckReport{}, fmt.Errorf("ask crid: %w", c.told(err))
	}
	var report fsckReport
	if err := json.Unmarshal(answer.GetReport(), &report); err != nil {
		return fsckReport{}, fmt.Errorf("read crid's answer: %w", err)
	}
	return report, nil
}
