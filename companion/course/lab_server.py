"""JupyterLab that says where it is as its last word when it has started; takes JupyterLab's own flags.

A script, which ``lab.py`` runs: imported as a part of the package it would load torch, for nothing.
"""

import socket
import sys
from urllib.parse import urlsplit

from jupyter_server.serverapp import ServerApp
from jupyterlab.labapp import LabApp

THIS_MACHINE = ("localhost", "127.0.0.1", "::1")
ALL_INTERFACES = ("", "*", "0.0.0.0", "::")


class Server(ServerApp):
    """Jupyter's server with its many lines on files and addresses replaced by one address, said when it answers."""

    def start_app(self) -> None:
        said = self.where()  # now: it shows the token only while that counts as made for this run
        self.identity_provider.token_generated = False  # else Jupyter says another address, before its last messages
        super().start_app()
        self.io_loop.add_callback(print, said, flush=True)

    def where(self) -> str:
        """The address, in the last line, and how to get there where no browser opens."""
        local = urlsplit(self.local_url)
        if self.ip in THIS_MACHINE:
            host = local.netloc
            help_ = (
                f"From another machine: `ssh -L {self.port}:{host} {socket.gethostname()}`, then this address there.\n"
                "From outside a container: publish the port, and start with --ip=0.0.0.0.\n"
            )
        else:
            host = f"{socket.gethostname() if self.ip in ALL_INTERFACES else self.ip}:{self.port}"
            help_ = (
                "From another machine: this address, with the name or number by which that machine knows this one.\n"
            )
        address = local._replace(netloc=host).geturl()
        return f"\n{'' if self.open_browser else help_}The course, until you press Ctrl-C:\n    {address}"


if __name__ == "__main__":
    LabApp.serverapp_class = Server
    sys.exit(LabApp.launch_instance())
