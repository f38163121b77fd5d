"""Where units are computed: in this process, or in several."""
