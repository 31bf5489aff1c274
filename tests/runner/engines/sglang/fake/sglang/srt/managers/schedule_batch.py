"""How a processor ends a request."""


class FINISH_ABORT:
    def __init__(self, message=None, status_code=None, err_type=None):
        self.message, self.status_code, self.err_type = message or "Aborted", status_code, err_type

    def to_json(self):
        return {"type": "abort", "message": self.message, "status_code": self.status_code, "err_type": self.err_type}
